//! JSON-RPC 2.0 without a transport: one request text in, one response text out.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::api::Fault;
use crate::report::Report;

/// What a method ends with.
pub type Outcome = Result<Value, Failure>;

/// Why a method failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// No method has that name.
    UnknownMethod(String),
    /// The parameters are not the method's.
    Parameters(String),
    /// It was tried and failed.
    Failed(Report),
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Failed(report)
    }
}

/// Answers a request or a batch of them. `None` when there is nothing to answer: notifications.
pub fn answer(text: &[u8], mut call: impl FnMut(&str, Value) -> Outcome) -> Option<String> {
    let response = match serde_json::from_slice(text) {
        Err(error) => {
            Some(failure(Value::Null, PARSE_ERROR, format!("parse error: {error}"), None))
        }
        Ok(Value::Array(batch)) if batch.is_empty() => Some(invalid(Value::Null, "an empty batch")),
        Ok(Value::Array(batch)) if batch.len() > MAX_BATCH => {
            Some(invalid(Value::Null, "a batch of too many requests"))
        }
        Ok(Value::Array(batch)) => {
            let responses: Vec<Value> =
                batch.into_iter().filter_map(|request| one(request, &mut call)).collect();
            (!responses.is_empty()).then_some(Value::Array(responses))
        }
        Ok(request) => one(request, &mut call),
    };
    response.map(|response| response.to_string())
}

/// Parses a method's parameters; left out, they are an empty object.
pub fn parameters<T: DeserializeOwned>(params: Value) -> Result<T, Failure> {
    let params = if params.is_null() { json!({}) } else { params };
    serde_json::from_value(params).map_err(|error| Failure::Parameters(error.to_string()))
}

/// A method's result.
pub fn result(value: impl Serialize) -> Outcome {
    serde_json::to_value(value).map_err(|error| Failure::Parameters(error.to_string()))
}

fn one(request: Value, call: &mut impl FnMut(&str, Value) -> Outcome) -> Option<Value> {
    let Value::Object(mut request) = request else {
        return Some(invalid(Value::Null, "not an object"));
    };
    let id = request.remove("id");
    let known = matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_)));
    let echo = if known { id.clone().unwrap_or(Value::Null) } else { Value::Null };
    if !known {
        return Some(invalid(echo, "the id is neither string nor number"));
    }
    if request.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Some(invalid(echo, "jsonrpc is not \"2.0\""));
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return Some(invalid(echo, "the method is not a string"));
    };
    let params = request.remove("params").unwrap_or(Value::Null);
    let outcome = call(&method, params);
    // A request without an id is a notification: it is done, and not answered.
    let id = id?;
    Some(match outcome {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(Failure::UnknownMethod(method)) => {
            failure(id, UNKNOWN_METHOD, format!("there is no method {method:?}"), None)
        }
        Err(Failure::Parameters(fault)) => {
            failure(id, INVALID_PARAMS, format!("invalid parameters: {fault}"), None)
        }
        Err(Failure::Failed(report)) => {
            let fault = serde_json::to_value(Fault::of(&report)).ok();
            failure(id, FAILED, report.what, fault)
        }
    })
}

fn invalid(id: Value, fault: &str) -> Value {
    failure(id, INVALID_REQUEST, format!("invalid request: {fault}"), None)
}

fn failure(id: Value, code: i64, message: String, data: Option<Value>) -> Value {
    let mut error = json!({"code": code, "message": message});
    if let (Some(data), Value::Object(error)) = (data, &mut error) {
        error.insert("data".to_owned(), data);
    }
    json!({"jsonrpc": "2.0", "id": id, "error": error})
}

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const UNKNOWN_METHOD: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
/// The first code that the specification leaves to servers.
const FAILED: i64 = -32000;
const MAX_BATCH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Exit;

    fn call(method: &str, params: Value) -> Outcome {
        match method {
            "echo" => Ok(params),
            "fail" => Err(Report::new(Exit::Retry, "busy", "it is busy").fix("wait").into()),
            "wrong" => Err(Failure::Parameters("missing field `x`".to_owned())),
            other => Err(Failure::UnknownMethod(other.to_owned())),
        }
    }

    fn reply(request: &str) -> Value {
        serde_json::from_str(&answer(request.as_bytes(), call).unwrap()).unwrap()
    }

    #[test]
    fn a_request_gets_its_result_under_its_id() {
        let reply = reply(r#"{"jsonrpc":"2.0","id":"a","method":"echo","params":{"x":1}}"#);
        assert_eq!(reply, json!({"jsonrpc": "2.0", "id": "a", "result": {"x": 1}}));
    }

    #[test]
    fn a_failure_carries_code_and_remedy() {
        let reply = reply(r#"{"jsonrpc":"2.0","id":1,"method":"fail"}"#);
        assert_eq!(reply["error"]["code"], -32000);
        assert_eq!(reply["error"]["message"], "it is busy");
        assert_eq!(reply["error"]["data"], json!({"code": "busy", "fix": "wait", "exit": 75}));
    }

    #[test]
    fn faults_have_the_codes_of_the_specification() {
        for (request, code) in [
            ("{", -32700),
            ("\u{1}", -32700),
            ("1", -32600),
            ("[]", -32600),
            (r#"{"id":1,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":{},"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"nothing"}"#, -32601),
            (r#"{"jsonrpc":"2.0","id":1,"method":"wrong"}"#, -32602),
        ] {
            assert_eq!(reply(request)["error"]["code"], code, "{request}");
        }
    }

    #[test]
    fn a_notification_is_not_answered() {
        assert_eq!(answer(br#"{"jsonrpc":"2.0","method":"echo"}"#, call), None);
    }

    #[test]
    fn a_batch_is_answered_as_one() {
        let reply = reply(
            r#"[{"jsonrpc":"2.0","id":1,"method":"echo"},{"jsonrpc":"2.0","method":"echo"},7]"#,
        );
        assert_eq!(reply.as_array().unwrap().len(), 2);
    }

    #[test]
    fn deeply_nested_text_is_a_parse_error() {
        assert_eq!(reply(&"[".repeat(100_000))["error"]["code"], -32700);
    }
}

use super::*;

fn parse_text(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("c.json"), text)
}

fn error(text: &str) -> String {
    Report::from(parse_text(text).unwrap_err()).to_string()
}

const GROUPS: &str = r#""portal_groups": [{"tag": 1, "listen": ["127.0.0.1"]}]"#;

fn lun(lun: &str) -> String {
    format!(
        "{{{GROUPS},\n\"targets\": [\n{{\"name\": \"iqn.2026-11.org.x:a\",\n\"luns\": [{lun}]}}]}}"
    )
}

#[test]
fn the_packaged_example_is_taken() {
    let text = include_str!("../../../packaging/config.json");
    let config = parse_text(text).unwrap();
    assert_eq!(config.targets.len(), 2);
    assert_eq!(config.targets[0].luns[1].source, Source::Ram(1 << 30));
    assert!(matches!(config.targets[1].allow, Allow::Names(ref names) if names.len() == 1));
}

#[test]
fn the_documented_example_is_taken() {
    let text = include_str!("../../../docs/configuration.md");
    let example = text.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(parse_text(example).unwrap().targets.len(), 1);
}

#[test]
fn an_unknown_key_names_line_place_and_nearest() {
    let text = lun("{\"file\": \"a\",\n\"readonly\": true}");
    let expected = "error[config-key]: c.json:5: unknown key \"readonly\" in targets[0].luns[0]\n  \
                    fix: did you mean \"read_only\"?";
    assert_eq!(error(&text), expected);
}

#[test]
fn an_unknown_key_like_no_other_lists_all() {
    let text = format!("{{{GROUPS}, \"targets\": [], \"quux\": 1}}");
    let error = error(&text);
    assert!(error.contains("unknown key \"quux\"\n"), "{error}");
    assert!(error.contains("the keys here are reactors, state_dir"), "{error}");
}

#[test]
fn a_wrong_type_names_the_key() {
    let error = error(&lun("{\"file\": \"a\", \"block_size\": \"512\"}"));
    assert!(error.contains("c.json:4:"), "{error}");
    assert!(error.contains("invalid type: string \"512\", expected u64"), "{error}");
    assert!(error.contains("(at targets[0].luns[0].block_size)"), "{error}");
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let error = error(&lun("{\"file\": \"a\", \"file\": \"b\"}"));
    assert!(error.contains("the key `file` is there twice"), "{error}");
}

#[test]
fn a_number_out_of_range_is_refused() {
    let error = error(&lun("{\"file\": \"a\", \"number\": 16384}"));
    assert!(error.contains("16384 is not in the range 0 to 16383"), "{error}");
}

#[test]
fn a_missing_key_is_named() {
    let error = error(&format!("{{{GROUPS}, \"targets\": [{{}}]}}"));
    assert!(error.contains("missing field `name` (at targets[0])"), "{error}");
}

#[test]
fn text_that_is_no_json_names_the_line() {
    let error = error("{\n\"targets\": [,]\n}");
    assert!(error.starts_with("error[config-value]: c.json:2:13: expected value"), "{error}");
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    for (text, fault) in [
        (lun("{}"), "exactly one of"),
        (lun("{\"file\": \"a\", \"ram\": \"1G\"}"), "exactly one of"),
        (lun("{\"ram\": \"1G\", \"direct\": true}"), "files and block devices only"),
        (lun("{\"ram\": \"1G\", \"number\": 1}, {\"ram\": \"1G\", \"number\": 1}"), "there twice"),
        (lun("{\"file\": \"a\", \"block_size\": 1024}"), "block size of 1024"),
        (
            format!(
                "{{{GROUPS}, \"targets\": [{{\"name\": \"iqn.2026-11.org.x\", \
                 \"portal_groups\": [2]}}]}}"
            ),
            "there is no portal group 2",
        ),
        (
            format!("{{{GROUPS}, \"iscsi\": {{\"max_burst\": 1024}}, \"targets\": []}}"),
            "is more than max_burst of 1024",
        ),
    ] {
        let error = error(&text);
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn nobody_may_log_in_unless_allowed() {
    let config = parse_text(&lun("")).unwrap();
    assert_eq!(config.targets[0].allow, Allow::Names(Vec::new()));
}

#[test]
fn portals_have_iscsis_port_unless_told() {
    for (text, expected) in [
        ("192.0.2.1", "192.0.2.1:3260"),
        ("192.0.2.1:3261", "192.0.2.1:3261"),
        ("::1", "[::1]:3260"),
        ("[::1]", "[::1]:3260"),
        ("[::1]:99", "[::1]:99"),
    ] {
        assert_eq!(portal(text).unwrap().to_string(), expected);
    }
    assert!(portal("localhost").is_err());
    assert!(portal("192.0.2.1:").is_err());
}

#[test]
fn none_switches_state_and_control_off() {
    let text =
        format!("{{{GROUPS}, \"targets\": [], \"state_dir\": \"none\", \"control\": \"/run/c\"}}");
    let config = parse_text(&text).unwrap();
    assert_eq!(config.state_dir, Place::Nowhere);
    assert_eq!(config.control, Place::At("/run/c".into()));
}

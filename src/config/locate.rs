//! Where in a JSON text something is: serde_json tells line and column of a fault, people look for
//! the path of the key.

/// The path of what stands at a line and column, both from 1.
pub fn path_at(text: &str, line: usize, column: usize) -> String {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let offset = start + column;
    let places = places(text);
    places
        .into_iter()
        .take_while(|place| place.offset < offset)
        .last()
        .map_or_else(String::new, |place| place.path)
}

/// The line, from 1, where the value with this path begins.
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let place = places(text).into_iter().find(|place| place.path == path)?;
    Some(text.as_bytes().iter().take(place.offset).filter(|&&b| b == b'\n').count() + 1)
}

struct Place {
    offset: usize,
    path: String,
}

enum Level {
    Object { key: String, expect_key: bool },
    Array { index: usize },
}

/// Every key, element and closing bracket with its path, up to where the text is no JSON.
fn places(text: &str) -> Vec<Place> {
    let bytes = text.as_bytes();
    let mut levels: Vec<Level> = Vec::new();
    let mut places = vec![Place { offset: 0, path: String::new() }];
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = end_of_string(bytes, at);
                if let Some(Level::Object { key, expect_key: expect @ true }) = levels.last_mut() {
                    *key = text.get(at + 1..end.saturating_sub(1)).unwrap_or_default().to_owned();
                    *expect = false;
                    places.push(Place { offset: at, path: path(&levels) });
                }
                at = end;
                continue;
            }
            b'{' => levels.push(Level::Object { key: String::new(), expect_key: true }),
            b'[' => {
                levels.push(Level::Array { index: 0 });
                places.push(Place { offset: at, path: path(&levels) });
            }
            b'}' | b']' => {
                levels.pop();
                places.push(Place { offset: at, path: path(&levels) });
            }
            b',' => match levels.last_mut() {
                Some(Level::Object { expect_key, .. }) => *expect_key = true,
                Some(Level::Array { index }) => {
                    *index += 1;
                    places.push(Place { offset: at, path: path(&levels) });
                }
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
    places
}

/// One past the closing quote.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn path(levels: &[Level]) -> String {
    let mut path = String::new();
    for level in levels {
        match level {
            Level::Object { key, .. } if path.is_empty() => path.push_str(key),
            Level::Object { key, .. } => path.extend([".", key]),
            Level::Array { index } => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "{\n  \"a\": [\n    {\"b\": 1},\n    {\"c\": \"x,\\\"{\",\n     \"d\": 2}\n  ]\n}\n";

    #[test]
    fn a_position_has_the_path_of_its_key() {
        assert_eq!(path_at(TEXT, 3, 9), "a[0].b");
        assert_eq!(path_at(TEXT, 5, 9), "a[1].d");
        assert_eq!(path_at(TEXT, 5, 12), "a[1]");
    }

    #[test]
    fn a_path_has_its_line() {
        assert_eq!(line_of(TEXT, "a[1].c"), Some(4));
        assert_eq!(line_of(TEXT, "a[1].d"), Some(5));
        assert_eq!(line_of(TEXT, "a[2]"), None);
    }

    #[test]
    fn any_text_has_places() {
        for text in ["", "{", "\"", "[[[", "}}]", "{\"a\\", "{\"\u{e9}\": [\u{e9}"] {
            let _ = path_at(text, 9, 9);
        }
    }
}

//! The nearest match for a word that is not known.

/// The candidate nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap neighbours) that lead from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.to_lowercase().chars().take(LONGEST).collect();
    let to: Vec<char> = to.to_lowercase().chars().take(LONGEST).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, &a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &b) in to.iter().enumerate() {
            let replace = above[j] + usize::from(a != b);
            let mut best = replace.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a == to[j - 1] && from[i - 1] == b {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[to.len()]
}

/// Longer words are compared by their beginning: they come from a file.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_meant() {
        let keys = ["read_only", "removable", "block_size", "serial"];
        assert_eq!(nearest("readonly", keys), Some("read_only"));
        assert_eq!(nearest("blocksize", keys), Some("block_size"));
        assert_eq!(nearest("seiral", keys), Some("serial"));
    }

    #[test]
    fn a_foreign_word_finds_nothing() {
        assert_eq!(nearest("compression", ["read_only", "serial"]), None);
    }

    #[test]
    fn equal_words_have_no_distance() {
        assert_eq!(distance("serial", "serial"), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("ab", "ba"), 1);
    }
}

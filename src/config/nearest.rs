//! The name that was probably meant.

use super::table::TABLE;

/// The setting whose name is nearest to this one, in any letter case, when it is near enough to be a slip: one slip in
/// a short name, three in a long one. An exact name is its own nearest.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_uppercase().replace('-', "_");
    let (distance, best) = TABLE.iter().map(|s| (distance(&name, s.name), s.name)).min()?;
    (distance <= (best.len() / 4).clamp(1, 3)).then_some(best)
}

/// How many insertions, deletions, replacements and swaps of neighbours turn one text into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            // Rows have b.len() + 1 entries, `row` has j of them here: every index below is in range.
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("abcd", "abdc"), 1);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn slips_are_understood_and_other_names_left_alone() {
        assert_eq!(nearest("REPLICATON_FACTOR"), Some("REPLICATION_FACTOR"));
        assert_eq!(nearest("http-prot"), Some("HTTP_PORT"));
        assert_eq!(nearest("seed"), Some("SEEDS"));
        for other in ["PATH", "HOME", "PORT", "HTTP_PROXY", "LANG", "TERM", "SHELL", "DEBUG"] {
            assert_eq!(nearest(other), None, "{other}");
        }
    }
}

//! Words in messages: the nearest of those that are known, and lists.

/// The known word that `word` is most likely a slip of.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let far = |candidate: &str| strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
    let (distance, best) =
        known.into_iter().map(|candidate| (far(candidate), candidate)).min_by_key(|x| x.0)?;
    let most = best.chars().count().max(lower.chars().count());
    (distance * 5 <= most * 2).then_some(best)
}

/// `a`, `b` and `c`.
pub(super) fn listed(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_told_from_other_words() {
        let known = ["prompt", "duration", "seed", "pan left"];
        assert_eq!(nearest("promt", known), Some("prompt"));
        assert_eq!(nearest("duratoin", known), Some("duration"));
        assert_eq!(nearest("Pan Lfet", known), Some("pan left"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn lists_read_well() {
        assert_eq!(listed(&["a"]), "`a`");
        assert_eq!(listed(&["a", "b", "c"]), "`a`, `b` and `c`");
        assert_eq!(listed(&[]), "");
    }
}

//! Dashboards and alerts name metrics; each must be one that the daemon declares.

use std::collections::BTreeSet;

use super::tokens::Token;

/// What Prometheus adds to a histogram's name.
const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// The metrics that a source file's string literals name.
pub fn declared(tokens: &[Token]) -> BTreeSet<String> {
    let literal = |token: &Token| token.text.strip_prefix('"')?.strip_suffix('"').map(str::to_owned);
    tokens.iter().filter_map(literal).filter(|text| is_metric(text)).collect()
}

/// Metrics that `text` names and nobody declares.
pub fn check(document: &str, text: &str, declared: &BTreeSet<String>) -> Vec<String> {
    let mut breaches = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| is_metric(word)) {
            let histogram = SUFFIXES.iter().find_map(|suffix| word.strip_suffix(suffix));
            if !declared.contains(word) && !histogram.is_some_and(|name| declared.contains(name)) {
                breaches.push(format!("{document}:{}: no metric is called {word}", index + 1));
            }
        }
    }
    breaches
}

fn is_metric(word: &str) -> bool {
    let rest = word.strip_prefix("migrated_");
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

#[cfg(test)]
mod tests {
    use super::super::tokens::read;
    use super::*;

    #[test]
    fn only_declared_metrics_pass() {
        let tokens =
            read("const A: &str = \"migrated_a_seconds\"; const M: &str = \"migrated_migrations_total\";")
                .unwrap();
        let declared = declared(&tokens);
        assert_eq!(declared.len(), 2);
        let good =
            "sum(rate(migrated_a_seconds_bucket{x=\"y\"}[5m])) / migrated_migrations_total; title: migrated";
        assert!(check("d.json", good, &declared).is_empty());
        let bad = check("d.json", "\nmigrated_b_seconds", &declared);
        assert_eq!(bad, ["d.json:2: no metric is called migrated_b_seconds"]);
    }
}

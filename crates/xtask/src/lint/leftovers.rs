//! What is written while one works and must not stay: placeholders, switched-off tests, tests that wait by sleeping.

use super::tokens::{Token, starts_with};
use crate::tree::Source;

/// Marks of unfinished work; split so that this file doesn't hold them.
const MARKS: [&str; 3] = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")];

/// Marks in comments or anywhere else.
pub fn in_text(source: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        for mark in words.filter(|word| MARKS.contains(word)) {
            breaches.push(format!("{}:{}: {mark}: do it or file it", source.path, index + 1));
        }
    }
    breaches
}

/// Placeholders, ignored tests, sleeping tests.
pub fn in_tokens(path: &str, tokens: &[Token]) -> Vec<String> {
    let test_file = path.split('/').any(|part| part == "tests" || part == "tests.rs");
    let mut breaches = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let mut breach = |what: &str| breaches.push(format!("{path}:{}: {what}", token.line));
        let here = &tokens[index..];
        if starts_with(here, &["todo", "!"]) || starts_with(here, &["unimplemented", "!"]) {
            breach(&format!("{}!: a placeholder", token.text));
        }
        if token.attribute && token.text == "ignore" {
            breach("#[ignore]: a switched-off test; require!(…) skips what a host can't run, and says so");
        }
        let in_test = test_file || token.test;
        if in_test && starts_with(here, &["thread", ":", ":", "sleep"]) {
            breach(
                "thread::sleep in a test: wait for the event itself, or testkit::wait_until where there is none",
            );
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::super::tokens::read;
    use super::*;

    fn breaches(path: &str, text: &str) -> usize {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        in_text(&source).len() + in_tokens(path, &read(text).unwrap()).len()
    }

    #[test]
    fn marks_are_whole_words() {
        for mark in MARKS {
            assert_eq!(breaches("a.rs", &format!("// {mark}: later")), 1);
            assert_eq!(breaches("a.rs", &format!("fn f() {{}} // ({mark})")), 1);
            assert_eq!(breaches("a.rs", &format!("// {mark}_LIST and X{mark}")), 0);
        }
    }

    #[test]
    fn placeholders() {
        assert_eq!(breaches("a.rs", "fn f() { todo!() }"), 1);
        assert_eq!(breaches("a.rs", "fn f() { std::unimplemented!(\"x\") }"), 1);
        assert_eq!(breaches("a.rs", "fn todo() {} // todo!()\nconst S: &str = \"unimplemented!\";"), 0);
    }

    #[test]
    fn ignored_tests() {
        assert_eq!(breaches("a.rs", "#[test] #[ignore] fn f() {}"), 1);
        assert_eq!(breaches("a.rs", "#[test] #[ignore = \"slow\"] fn f() {}"), 1);
        assert_eq!(breaches("a.rs", "#[cfg_attr(unix, ignore)] fn f() {}"), 1);
        assert_eq!(breaches("a.rs", "fn ignore() { ignore() }"), 0);
    }

    #[test]
    fn only_tests_may_not_sleep() {
        assert_eq!(breaches("crates/a/src/b.rs", "fn f() { std::thread::sleep(d) }"), 0);
        assert_eq!(breaches("crates/a/src/b.rs", "#[cfg(test)] mod t { use std::thread::sleep; }"), 1);
        assert_eq!(breaches("crates/a/tests/b.rs", "fn f() { thread::sleep(d) }"), 1);
        assert_eq!(breaches("crates/a/src/tests.rs", "fn f() { thread::sleep(d) }"), 1);
    }
}

//! A file's tokens, flat, each with its line and whether it belongs to a test. Comments and the insides of
//! string literals are no tokens, so a rule on tokens can't be tripped by prose.

use proc_macro2::{Delimiter, Group, LexError, TokenStream, TokenTree};

/// One token.
#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    /// As written; a literal whole, a group as its opening and closing delimiter.
    pub text: String,
    /// Counted from 1.
    pub line: usize,
    /// Inside of an item with `#[cfg(test)]` or `#[test]`.
    pub test: bool,
    /// Inside of an attribute's brackets.
    pub attribute: bool,
}

/// Reads a file.
pub fn read(text: &str) -> Result<Vec<Token>, LexError> {
    let mut tokens = Vec::new();
    flatten(text.parse()?, false, false, &mut tokens);
    Ok(tokens)
}

/// Whether the tokens from the front of `tokens` are these.
pub fn starts_with(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

fn flatten(stream: TokenStream, test: bool, attribute: bool, into: &mut Vec<Token>) {
    let mut after_hash = false;
    // An attribute with `test` marks what follows, up to the item's body or its semicolon.
    let mut item_is_test = false;
    for tree in stream {
        let line = tree.span().start().line;
        let test = test || item_is_test;
        match &tree {
            TokenTree::Group(group) => {
                let is_attribute = after_hash && group.delimiter() == Delimiter::Bracket;
                delimited(group, test, attribute || is_attribute, into);
                if is_attribute {
                    item_is_test |= names_test(&group.stream());
                } else if group.delimiter() == Delimiter::Brace {
                    item_is_test = false;
                }
                after_hash = false;
            }
            _ => {
                let text = tree.to_string();
                after_hash = text == "#" || (after_hash && text == "!");
                if text == ";" {
                    item_is_test = false;
                }
                into.push(Token { text, line, test, attribute });
            }
        }
    }
}

fn delimited(group: &Group, test: bool, attribute: bool, into: &mut Vec<Token>) {
    let (open, close) = match group.delimiter() {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    };
    let line = group.span_open().start().line;
    into.push(Token { text: open.to_owned(), line, test, attribute });
    flatten(group.stream(), test, attribute, into);
    let line = group.span_close().start().line;
    into.push(Token { text: close.to_owned(), line, test, attribute });
}

/// `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`; not `#[cfg(not(test))]`.
fn names_test(attribute: &TokenStream) -> bool {
    let mut negated = false;
    attribute.clone().into_iter().any(|tree| match tree {
        TokenTree::Ident(ident) => {
            negated = ident == "not";
            ident == "test"
        }
        TokenTree::Group(group) => !negated && names_test(&group.stream()),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_in_tests(text: &str) -> Vec<String> {
        let words =
            read(text).unwrap().into_iter().filter(|token| token.test && token.text.starts_with("w_"));
        words.map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_strings_are_no_words() {
        let tokens = read("// one\n/* two */ let x = \"three\"; /// four\nfn f() {}").unwrap();
        let words: Vec<_> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert!(!words.contains(&"one") && !words.contains(&"two") && !words.contains(&"three"));
        assert!(words.contains(&"let") && words.contains(&"\"three\""));
    }

    #[test]
    fn lines_are_counted_from_one() {
        let tokens = read("a\n\nb { c\n}").unwrap();
        let lines: Vec<_> = tokens.iter().map(|token| (token.text.as_str(), token.line)).collect();
        assert_eq!(lines, [("a", 1), ("b", 3), ("{", 3), ("c", 3), ("}", 4)]);
    }

    #[test]
    fn test_items_end_where_the_item_ends() {
        assert_eq!(words_in_tests("#[cfg(test)] mod t { fn w_a() {} } fn w_b() {}"), ["w_a"]);
        assert_eq!(words_in_tests("#[test] fn w_a() { w_b(); } fn w_c() {}"), ["w_a", "w_b"]);
        assert_eq!(words_in_tests("#[cfg(test)] use w_a::b; fn w_c() {}"), ["w_a"]);
        assert_eq!(words_in_tests("#[cfg(all(test, unix))] mod t { w_a! {} }"), ["w_a"]);
        assert!(words_in_tests("#[cfg(not(test))] fn w_a() {}").is_empty());
    }

    #[test]
    fn attributes_are_marked() {
        let tokens = read("#![inner(a)] #[outer = b] c").unwrap();
        let inside: Vec<_> = tokens.iter().filter(|t| t.attribute).map(|t| t.text.as_str()).collect();
        assert_eq!(inside, ["[", "inner", "(", "a", ")", "]", "[", "outer", "=", "b", "]"]);
    }

    #[test]
    fn half_a_file_is_an_error() {
        assert!(read("fn f() {").is_err());
    }
}

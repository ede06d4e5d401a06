//! Where `unsafe` may be written. Everywhere else the compiler's guarantees hold by themselves.

use super::tokens::{Token, starts_with};

/// Files, and folders with a trailing slash, that may hold unsafe code.
const ROOMS: [&str; 5] = [
    "crates/kernel/",
    // Finding zero pages and reading pages that the guest writes meanwhile.
    "crates/guest/src/scan.rs",
    // Kicking a vCPU thread out of KVM_RUN.
    "crates/vmm/src/vcpu/kick.rs",
    // The freestanding guest: no operating system beneath it.
    "crates/vmm/workload/",
    "transports/tcp/src/sys.rs",
];

/// Unsafe code, and permissions for it, outside of the rooms.
pub fn check(path: &str, tokens: &[Token]) -> Vec<String> {
    if ROOMS.iter().any(|room| path == *room || (room.ends_with('/') && path.starts_with(room))) {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if token.text == "unsafe" {
            breaches.push(format!(
                "{path}:{}: unsafe outside of its rooms ({})",
                token.line,
                ROOMS.join(", ")
            ));
        }
        let permission = ["allow", "expect", "warn"].contains(&token.text.as_str()) && token.attribute;
        if permission && starts_with(&tokens[index + 1..], &["(", "unsafe_code"]) {
            breaches.push(format!("{path}:{}: {}(unsafe_code) outside of the rooms", token.line, token.text));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::super::tokens::read;
    use super::*;

    fn breaches(path: &str, text: &str) -> usize {
        check(path, &read(text).unwrap()).len()
    }

    #[test]
    fn the_keyword_is_found_wherever_it_stands() {
        for text in [
            "fn f() { unsafe { g() } }",
            "unsafe fn f() {}",
            "unsafe impl Send for X {}",
            "#[unsafe(no_mangle)] fn f() {}",
            "macro_rules! m { () => { unsafe { f() } } }",
            "#![allow(unsafe_code)]",
        ] {
            assert_eq!(breaches("crates/engine/src/lib.rs", text), 1, "{text}");
        }
    }

    #[test]
    fn prose_about_it_is_not_it() {
        let text = "//! unsafe\n#![deny(unsafe_code)]\n/* unsafe */ const X: &str = \"unsafe { }\"; fn unsafe_ish() {}";
        assert_eq!(breaches("crates/engine/src/lib.rs", text), 0);
    }

    #[test]
    fn the_rooms_are_exact() {
        let text = "unsafe fn f() {}";
        assert_eq!(breaches("crates/kernel/src/uffd.rs", text), 0);
        assert_eq!(breaches("crates/guest/src/scan.rs", text), 0);
        assert_eq!(breaches("crates/guest/src/ram.rs", text), 1);
        assert_eq!(breaches("crates/guest/src/scan.rs/other.rs", text), 1);
        assert_eq!(breaches("crates/kernel2/src/lib.rs", text), 1);
    }
}

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::NetnsError;

/// Runs a program to its end and gives what it prints. An interrupt of the terminal must not reach it: it may be
/// cleaning up.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, NetnsError> {
    run_with(program, args, "")
}

/// The same, with this as its standard input.
pub(crate) fn run_with(program: &str, args: &[&str], input: &str) -> Result<String, NetnsError> {
    let command = || format!("{program} {}", args.join(" "));
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => NetnsError::NoProgram {
            command: command(),
            program: program.to_owned(),
            package: package(program),
        },
        _ => NetnsError::Io { command: command(), source },
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading it says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ran = child.wait_with_output().map_err(failed)?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr).trim().replace('\n', "; ");
    Err(NetnsError::Failed { command: command(), said })
}

fn package(program: &str) -> &'static str {
    match program {
        "nft" => "nftables",
        _ => "iproute2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_said_and_what_is_missing_are_named() {
        let error = run("ls", &["/no/such/file"]).unwrap_err().to_string();
        assert!(error.contains("`ls /no/such/file`: ls: "), "{error}");
        let error = run("no-such-program", &["x"]).unwrap_err().to_string();
        assert!(error.ends_with("there is no `no-such-program`; install iproute2"), "{error}");
    }

    #[test]
    fn input_reaches_it() {
        assert_eq!(run_with("cat", &[], "abc").unwrap(), "abc");
    }
}

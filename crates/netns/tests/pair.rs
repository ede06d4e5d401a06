//! A link as two programs see it that talk over it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use migrated_netns::{ADDRESSES, Fault, Pair};
use migrated_testkit::require;

/// Whether host 1 can be reached from host 0: one packet there and back, with some patience.
fn reaches(pair: &Pair) -> bool {
    let script = format!("exec 3<>/dev/tcp/{}/9", ADDRESSES[1]);
    let mut command = pair.command(0, "timeout");
    // Nobody listens there: whoever is reached refuses at once, else nothing comes back.
    let ended = command.args(["3", "bash", "-c", &script]).stderr(Stdio::null()).status().unwrap();
    ended.code() != Some(124)
}

#[test]
fn a_cut_link_carries_nothing_until_it_is_restored() {
    require!(Netns);
    let pair = Pair::make(Some(1_000_000_000)).unwrap();
    assert!(reaches(&pair));
    pair.fault(Fault::Drop).unwrap();
    assert!(!reaches(&pair));
    pair.fault(Fault::Loss(0)).unwrap();
    assert!(reaches(&pair), "one fault replaces the other");
    pair.fault(Fault::Reset).unwrap();
    assert!(reaches(&pair), "a reset is an answer");
    pair.fault(Fault::Drop).unwrap();
    pair.restore().unwrap();
    assert!(reaches(&pair));
    pair.restore().unwrap();
}

/// A program that answers each line with the same line.
fn echo(pair: &Pair) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut child = pair.command(0, "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    (child, input, output)
}

#[test]
fn what_runs_inside_is_known_and_goes_with_it() {
    require!(Netns);
    let mut pair = Pair::make(None).unwrap();
    let (mut child, mut input, mut output) = echo(&pair);
    input.write_all(b"there\n").unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), pair.pids(0).unwrap()), ("there\n", vec![child.id()]));
    assert_eq!(pair.pids(1).unwrap(), [] as [u32; 0]);
    let problems = pair.remove();
    assert!(problems.is_empty(), "{problems:?}");
    assert!(!child.wait().unwrap().success());
}

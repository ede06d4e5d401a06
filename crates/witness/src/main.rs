//! The program in the lab's guests: `serve` answers and watches, `show` prints what the one that serves has seen.
#![allow(clippy::print_stdout, reason = "the guest's console is where it speaks")]

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;

use migrated_witness::{Answer, Clocks, PORT, READY, Request, serve};

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => listen(),
        Some("show") => show(),
        _ => Err(io::Error::other("say `serve` or `show`")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("migrated-witness: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen() -> io::Result<()> {
    let clocks = Clocks::watch()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    println!("{READY}");
    serve(&listener, clocks)
}

fn show() -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
    Request { number: 0, nonce: 0 }.write(&mut stream)?;
    let answer = Answer::read(&mut stream)?;
    println!(
        "witness: backward_ns={} gap_ns={} unix_ns={}",
        answer.clocks.backward_ns, answer.clocks.gap_ns, answer.unix_ns
    );
    Ok(())
}

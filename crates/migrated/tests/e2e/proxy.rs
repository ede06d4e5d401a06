use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use hyper::Method;
use migrated_api::{PrepareIncoming, Prepared};

use crate::client::Api;
use crate::netns::Netns;

/// What a test does between the destination's answer to a prepare and its arrival at the source.
type Between = Box<dyn FnMut(&PrepareIncoming, &Prepared) + Send>;

/// Passes requests of a source's daemon on to a destination's, until the source has been told where to go:
/// a prepare that was answered is the last.
pub fn start(
    netns: &Netns,
    at: SocketAddr,
    destination: Api,
    mut between: Between,
) -> thread::JoinHandle<()> {
    let listener = netns.enter(|| TcpListener::bind(at).unwrap());
    thread::spawn(move || while !pass_on(&listener, &destination, &mut between) {})
}

fn pass_on(listener: &TcpListener, destination: &Api, between: &mut Between) -> bool {
    let (mut stream, _) = listener.accept().unwrap();
    let (method, path, body) = read_request(&stream);
    let answer = destination.call(method.clone(), &path, body.clone()).unwrap();
    let prepared = method == Method::POST && path == "/v1/incoming" && answer.status == 201;
    if prepared {
        between(&serde_json::from_slice(&body).unwrap(), &answer.read());
    }
    let (status, length) = (answer.status, answer.body.len());
    let head = format!("HTTP/1.1 {status} .\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &answer.body].concat()).unwrap();
    prepared
}

fn read_request(stream: &TcpStream) -> (Method, String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut first = head[0].split(' ');
    let method = first.next().unwrap().parse().unwrap();
    let path = first.next().unwrap().to_owned();
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    (method, path, body)
}

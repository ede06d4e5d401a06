//! A daemon's client and a VM process's server over a real seqpacket socket.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use migrated_control::{
    CONTROL_VERSION, ClientError, ConsoleChunk, ControlClient, ControlError, ControlHello, ErrorKind, Event,
    EventSink, FromVm, MAX_MESSAGE, Request, Response, ToVm, VmDir, VmService, VmState, bind_control,
    connect_control, serve,
};
use parking_lot::Mutex;

const PATIENCE: Duration = Duration::from_secs(20);

/// Pause waits until Resume was asked.
struct Service {
    resumed: SyncSender<()>,
    waits: Mutex<Receiver<()>>,
}

impl VmService for Service {
    fn handle(&self, request: Request) -> Result<Response, ControlError> {
        match request {
            Request::Pause => self.waits.lock().recv().expect("the sender lives as long as the service"),
            Request::Resume => self.resumed.send(()).expect("the receiver lives as long as the service"),
            Request::ConsoleRead { max, .. } => {
                return Ok(Response::Console(ConsoleChunk { from: 0, bytes: vec![255; max as usize] }));
            }
            _ => return Err(ControlError::new(ErrorKind::Conflict, "no", "not now")),
        }
        Ok(Response::Done)
    }
}

fn start(dir: &VmDir) -> EventSink {
    let listener = bind_control(&dir.control_socket()).unwrap();
    let (resumed, waits) = sync_channel(1);
    let events = EventSink::new();
    let sink = events.clone();
    thread::spawn(move || serve(listener, Arc::new(Service { resumed, waits: Mutex::new(waits) }), sink));
    events
}

fn deep_dir(root: &tempfile::TempDir) -> VmDir {
    let path = root.path().join("a-state-directory-deeper-than-a-socket-address-is-long".repeat(3));
    std::fs::create_dir(&path).unwrap();
    VmDir::new(path)
}

#[tokio::test]
async fn several_requests_are_in_flight_and_events_come_between() {
    let root = tempfile::tempdir().unwrap();
    let dir = deep_dir(&root);
    let events = start(&dir);
    let (client, mut received) = ControlClient::connect(&dir.control_socket(), PATIENCE).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.perform(Request::Pause).await }
    });
    let refused = client.status().await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(e) if e.code == "no" && e.kind == ErrorKind::Conflict));
    let event = Event::VmState { state: VmState::Paused, reason: Some("asked".into()) };
    events.send(event.clone());
    assert_eq!(received.recv().await, Some(event));
    client.perform(Request::Resume).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_as_large_as_a_chunk_passes_and_a_larger_one_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let dir = deep_dir(&root);
    let _events = start(&dir);
    let (client, _received) = ControlClient::connect(&dir.control_socket(), PATIENCE).await.unwrap();
    let read = |max: usize| client.request(Request::ConsoleRead { from: 0, max: max as u32, wait_ms: 0 });
    let Response::Console(chunk) = read(ConsoleChunk::MAX).await.unwrap() else { panic!("no console") };
    assert_eq!(chunk.bytes.len(), ConsoleChunk::MAX);
    let error = read(MAX_MESSAGE).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(e) if e.code == "answer_too_large"));
}

#[tokio::test]
async fn nonsense_and_other_versions_end_a_connection_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let dir = deep_dir(&root);
    let _events = start(&dir);
    let hello = |version| serde_json::to_vec(&ToVm::Hello(ControlHello { version })).unwrap();
    let request = serde_json::to_vec(&ToVm::Request { id: 1, request: Request::Status }).unwrap();
    let openings = [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![b' '; MAX_MESSAGE + 10], request, hello(0)];
    for opening in openings {
        let expects_hello = opening == hello(0);
        tokio::task::spawn_blocking({
            let socket = connect_control(&dir.control_socket()).unwrap();
            move || {
                rustix::net::send(&socket, &opening, rustix::net::SendFlags::NOSIGNAL).unwrap();
                let mut answer = vec![0; 1000];
                let mut next =
                    || rustix::net::recv(socket.as_fd(), &mut answer[..], rustix::net::RecvFlags::empty());
                let first = next().unwrap().1;
                assert_eq!(first > 0, expects_hello);
                if expects_hello {
                    assert_eq!(next().unwrap().1, 0);
                }
            }
        })
        .await
        .unwrap();
    }
    let (client, _received) = ControlClient::connect(&dir.control_socket(), PATIENCE).await.unwrap();
    assert!(matches!(client.status().await, Err(ClientError::Refused(_))));
}

#[tokio::test]
async fn a_daemon_learns_that_the_vm_process_is_of_another_version_or_gone() {
    let root = tempfile::tempdir().unwrap();
    let dir = deep_dir(&root);
    let listener = bind_control(&dir.control_socket()).unwrap();
    let server = thread::spawn(move || {
        for version in [99, CONTROL_VERSION] {
            let socket = rustix::net::accept(&listener).unwrap();
            rustix::net::recv(&socket, &mut [0; 1000][..], rustix::net::RecvFlags::empty()).unwrap();
            let hello = serde_json::to_vec(&FromVm::Hello(ControlHello { version })).unwrap();
            rustix::net::send(&socket, &hello, rustix::net::SendFlags::NOSIGNAL).unwrap();
        }
    });
    let error = ControlClient::connect(&dir.control_socket(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, ClientError::Version(99)));
    let (client, mut events) = ControlClient::connect(&dir.control_socket(), PATIENCE).await.unwrap();
    server.join().unwrap();
    assert_eq!(events.recv().await, None);
    assert!(matches!(client.status().await, Err(ClientError::Closed | ClientError::Io(_))));
    let error = ControlClient::connect(&dir.control_socket(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, ClientError::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused));
}

//! The proxy, with one upstream that is away.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::server;

/// Answers 200 to whatever comes.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = BufReader::new(socket.unwrap());
            let mut line = String::new();
            while socket.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            socket.get_mut().write_all(answer).unwrap();
        }
    });
    address
}

/// A port that was free a moment ago.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn get(proxy: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut socket = loop {
        match TcpStream::connect(proxy) {
            Ok(socket) => break socket,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    };
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    BufReader::new(socket).lines().next().unwrap().unwrap()
}

#[test]
fn the_second_upstream_answers_for_the_first_and_nobody_for_an_upstream_that_is_away() {
    let (away, working, both, alone) = (free_port(), upstream(), free_port(), free_port());
    let (listen, first) = (both.clone(), away.clone());
    thread::spawn(move || server(&listen, &[&first, &working]).run_forever());
    for _ in 0..5 {
        assert_eq!(get(&both), "HTTP/1.1 200 OK");
    }
    let listen = alone.clone();
    thread::spawn(move || server(&listen, &[&away]).run_forever());
    // Each request tries until the circuit is open.
    assert_eq!([get(&alone), get(&alone)], ["HTTP/1.1 503 Service Unavailable"; 2]);
}

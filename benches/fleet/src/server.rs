//! A Redis of its own for each world, and what happens to it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::port::free_port;

pub(crate) struct Redis {
    server: Child,
    pub(crate) port: u16,
    folder: PathBuf,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("fleet-bench-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for temporary files");
        let redis = Self { server: Self::run(port, &folder), port, folder };
        redis.until_it_answers().await;
        redis
    }

    fn run(port: u16, folder: &PathBuf) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.arg("--dir").arg(folder).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("redis-server is installed")
    }

    async fn until_it_answers(&self) {
        let answers = async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), answers).await.expect("redis-server starts");
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let out = Command::new("redis-cli").args(["-p", &port]).args(arguments).output();
        String::from_utf8_lossy(&out.expect("redis-cli is installed").stdout).into_owned()
    }

    /// A number that `INFO` tells.
    pub(crate) fn info(&self, name: &str) -> f64 {
        let info = self.cli(&["INFO", "everything"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }

    /// How often a command was called.
    pub(crate) fn calls(&self, command: &str) -> f64 {
        let info = self.cli(&["INFO", "commandstats"]);
        let start = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next());
        line.and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.server.id().to_string()]).status();
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    pub(crate) async fn start_again(&mut self) {
        self.server = Self::run(self.port, &self.folder);
        self.until_it_answers().await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A way to it that can be cut.
pub(crate) struct Way {
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Way {
    pub(crate) async fn to(redis: &Redis) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let (port, to) = (listener.local_addr().expect("an address").port(), redis.port);
        let task = tokio::spawn(async move {
            // What is in it ends with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { port, task }
    }

    pub(crate) fn cut(&self) {
        self.task.abort();
    }
}

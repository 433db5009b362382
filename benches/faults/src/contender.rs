//! The contenders in front of the two providers.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::process::{free_port, is_there, wait_for};
use crate::provider::Latency;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Who {
    Nginx,
    Haproxy,
    Fusebox,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Fusebox => "**fusebox**",
        }
    }

    /// The program that has to be installed.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Nginx => Some("nginx"),
            Self::Haproxy => Some("haproxy"),
            Self::Fusebox => None,
        }
    }

    pub(crate) fn is_there(self) -> bool {
        self.program().is_none_or(is_there)
    }
}

/// A process and those it started. It ends when this is dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) port: u16,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's master ends its workers; HAProxy has none with -db.
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// In front of a provider that fails, and of one that takes over, if there is one.
pub(crate) fn start(
    who: Who,
    folder: &Path,
    fusebox: &Path,
    latency: Latency,
    primary: u16,
    fallback: Option<u16>,
) -> Running {
    let port = free_port();
    let timeout = match latency {
        Latency::Short => 2,
        Latency::Tail => 25,
    };
    let configuration = |name: &str, text: String| -> PathBuf {
        let path = folder.join(format!("{port}-{name}"));
        fs::write(&path, text).expect("a temporary folder takes a file");
        path
    };
    let mut command;
    match who {
        Who::Nginx => {
            command = Command::new("nginx");
            let text = nginx(folder, port, timeout, primary, fallback);
            command.arg("-c").arg(configuration("nginx.conf", text));
        }
        Who::Haproxy => {
            command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(configuration("haproxy.cfg", haproxy(port, timeout, primary, fallback)));
        }
        Who::Fusebox => {
            command = Command::new(fusebox);
            let text = toml(port, timeout, primary, fallback);
            command.args(["serve", "--config"]).arg(configuration("fusebox.toml", text));
        }
    }
    spawn(command, folder, port, who)
}

/// The gateway with this configuration, but for its `[server]`.
pub(crate) fn start_with(folder: &Path, fusebox: &Path, text: &str) -> Running {
    let port = free_port();
    let path = folder.join(format!("{port}-fusebox.toml"));
    let server = format!("[server]\nlisten = '127.0.0.1:{port}'\naccess_log = false\n{text}");
    fs::write(&path, server).expect("a temporary folder takes a file");
    let mut command = Command::new(fusebox);
    command.args(["serve", "--config"]).arg(path);
    spawn(command, folder, port, Who::Fusebox)
}

fn spawn(mut command: Command, folder: &Path, port: u16, who: Who) -> Running {
    let said = folder.join(format!("{port}.err"));
    let stderr = fs::File::create(&said).expect("a temporary folder takes a file");
    let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("a contender");
    let running = Running { child, port };
    wait_for(port)
        .unwrap_or_else(|error| panic!("{}: {error}: {}", who.name(), fs::read_to_string(said).unwrap_or_default()));
    running
}

/// Three failures, 5 s.
fn nginx(folder: &Path, port: u16, timeout: u32, primary: u16, fallback: Option<u16>) -> String {
    let folder = folder.display();
    let backup = fallback.map_or(String::new(), |fallback| format!("server 127.0.0.1:{fallback} backup;"));
    format!(
        "worker_processes 1; daemon off; pid {folder}/{port}.pid; error_log {folder}/{port}.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  upstream up {{
    server 127.0.0.1:{primary} max_fails=3 fail_timeout=5s; {backup} keepalive 256;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;
      proxy_connect_timeout 1s; proxy_read_timeout {timeout}s;
      proxy_next_upstream error timeout http_500 http_429 non_idempotent;
    }}
  }}
}}
"
    )
}

/// The same; a check every 5 s brings the server back.
fn haproxy(port: u16, timeout: u32, primary: u16, fallback: Option<u16>) -> String {
    let backup = fallback.map_or(String::new(), |fallback| format!("server b 127.0.0.1:{fallback} backup"));
    format!(
        "global
  maxconn 8192
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server {timeout}s
  http-reuse always
  option http-buffer-request
  option redispatch 1
  retries 3
  retry-on conn-failure empty-response response-timeout 500
frontend f
  bind 127.0.0.1:{port} backlog 4096
  default_backend b
backend b
  server a 127.0.0.1:{primary} check inter 5s rise 1 observe layer7 error-limit 3 on-error mark-down
  {backup}
"
    )
}

fn toml(port: u16, timeout: u32, primary: u16, fallback: Option<u16>) -> String {
    let mut text = format!(
        "[server]\nlisten = '127.0.0.1:{port}'\naccess_log = false\n[breaker]\nopen_for = '5s'\n\
         [timeouts]\nconnect = '1s'\nfirst_byte = '{timeout}s'\nidle = '{timeout}s'\n"
    );
    for (name, port) in [("a", Some(primary)), ("b", fallback)] {
        let Some(port) = port else { continue };
        writeln!(text, "[[providers]]\nname = '{name}'\nurl = 'http://127.0.0.1:{port}/v1'\nmodels = ['m']")
            .expect("a string");
    }
    text
}

//! By a real Redis, in real time: `cargo test --features fleet --test fleet -- --ignored`. It takes `redis-server` and
//! `redis-cli`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fusebox::fleet::{FleetConfig, Mode};
use fusebox::{Cause, CircuitState, Config};
use tokio::time::sleep;

use crate::port::free_port;
use crate::support::{MILLI, Replica, SECOND, probes};

const OPEN_FOR: Duration = Duration::from_millis(400);

/// A server of its own, which ends with the test.
struct Redis {
    server: Child,
    port: u16,
    folder: std::path::PathBuf,
    arguments: Vec<String>,
}

impl Redis {
    fn start(arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("fusebox-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let server = Self::run(port, &folder, &arguments);
        Self { server, port, folder, arguments }
    }

    fn run(port: u16, folder: &std::path::Path, arguments: &[String]) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port.to_string()]);
        let command = command.arg("--dir").arg(folder).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("redis-server is installed")
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let out =
            Command::new("redis-cli").args(["-p", &port]).args(arguments).output().expect("redis-cli is installed");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.server.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.server = Self::run(self.port, &self.folder, &self.arguments);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < SECOND * 20, "waited for this: {what}");
        sleep(MILLI * 5).await;
    }
}

fn breaker() -> Config {
    Config::builder().failure_threshold(3).open_for(OPEN_FOR).build().unwrap()
}

fn config(redis: &Redis) -> FleetConfig {
    FleetConfig::redis(&redis.url()).unwrap().sync(MILLI * 200).unwrap()
}

fn is_up(replica: &Replica) -> bool {
    replica.fleet().snapshot().up
}

async fn joined(number: usize, config: impl Fn() -> FleetConfig) -> Vec<Replica> {
    let replicas: Vec<_> = (0..number).map(|_| Replica::with(breaker(), config())).collect();
    until("all have joined", || replicas.iter().all(|it| is_up(it) && it.fleet().snapshot().replicas == number)).await;
    replicas
}

/// All of them have opened, and the first one was heard of by the others.
async fn all_open(replicas: &[Replica]) {
    replicas[0].open();
    until("the others suspect it", || replicas[1..].iter().all(|it| it.breaker.failure_count() == 2)).await;
    for replica in &replicas[1..] {
        replica.open();
    }
    until("they agree", || replicas.iter().all(Replica::is_agreed)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn what_one_replica_finds_out_reaches_the_others_and_a_good_call_objects() {
    let redis = Redis::start(&[]);
    let replicas = joined(3, || config(&redis)).await;
    replicas[0].open();
    until("they suspect it", || replicas[1..].iter().all(|it| it.breaker.failure_count() == 2)).await;
    replicas[1].succeed();
    until("it objects", || replicas[2].fleet().snapshot().circuits["p"].objectors == 1).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn one_replica_probes_for_all_and_all_follow_its_result() {
    let redis = Redis::start(&[]);
    let replicas = joined(4, || config(&redis)).await;
    all_open(&replicas).await;
    let mut found = Vec::new();
    until("one probes", || {
        found.extend(probes(&replicas));
        !found.is_empty()
    })
    .await;
    assert_eq!(found.len(), 1);
    let (prober, probe) = found.pop().unwrap();
    probe.failure("5xx", 503);
    let others = || replicas.iter().enumerate().filter(|(at, _)| *at != prober);
    until("the others wait", || others().all(|(_, it)| it.breaker.snapshot().cause == Some(Cause::Fleet))).await;
    assert!(redis.cli(&["PTTL", "{fusebox:default}:failed:p"]).parse::<i64>().unwrap() > 0);
    until("another one probes", || {
        found.extend(probes(&replicas));
        !found.is_empty()
    })
    .await;
    let (_, probe) = found.pop().unwrap();
    probe.success();
    until("all close", || {
        for (_, probe) in probes(&replicas) {
            probe.success();
        }
        replicas.iter().all(|replica| replica.state() == CircuitState::Closed)
    })
    .await;
    assert_eq!(replicas.iter().map(|replica| replica.said("closed")).sum::<u64>(), 1);
    let kept = redis.cli(&["KEYS", "*"]);
    assert_eq!(kept, "{fusebox:default}:replicas", "nothing stands any more");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_cooldown_reaches_those_who_are_there_and_those_who_come() {
    let redis = Redis::start(&[]);
    let replicas = joined(2, || config(&redis)).await;
    replicas[0].breaker.trip_for(SECOND * 30, "429", "later");
    let cools = |it: &Replica| it.breaker.snapshot().cause == Some(Cause::Cooldown);
    until("the other one cools down", || cools(&replicas[1])).await;
    let joiner = Replica::with(breaker(), config(&redis));
    until("and who comes", || cools(&joiner)).await;
    let left = joiner.breaker.snapshot().next_probe_in.unwrap();
    assert!(left > SECOND * 20 && left <= SECOND * 30, "{left:?}");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_quorum_opens_the_others_and_two_of_them_look_whether_it_is_so() {
    let redis = Redis::start(&[]);
    let replicas = joined(5, || config(&redis).mode(Mode::Quorum)).await;
    replicas[0].open();
    replicas[1].open();
    let opened = |it: &Replica| it.fleet().snapshot().hearsay_openings == 1;
    until("the others open", || replicas[2..].iter().all(opened)).await;
    let mut looking = Vec::new();
    until("two look", || {
        looking.extend(probes(&replicas[2..]));
        looking.len() >= 2
    })
    .await;
    assert_eq!(redis.cli(&["ZCARD", "{fusebox:default}:opinions:p"]), "2");
    for (_, probe) in looking {
        probe.success();
    }
    until("they were right", || replicas[2..].iter().all(|it| it.state() == CircuitState::Closed)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_replica_that_dies_with_the_lease_holds_nobody_up_for_long() {
    let redis = Redis::start(&[]);
    let mut replicas = joined(2, || config(&redis)).await;
    all_open(&replicas).await;
    let mut found = Vec::new();
    until("one probes", || {
        found.extend(probes(&replicas));
        !found.is_empty()
    })
    .await;
    let (prober, probe) = found.pop().unwrap();
    std::mem::forget(probe);
    drop(replicas.remove(prober));
    until("the other one probes", || replicas[0].probe().is_some()).await;
}

// ---- trouble ----

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_hangs_is_noticed_and_joined_again_when_it_goes_on() {
    let redis = Redis::start(&[]);
    let replicas = joined(2, || config(&redis)).await;
    redis.signal("-STOP");
    replicas[0].open();
    until("it is noticed", || !is_up(&replicas[0]) && !is_up(&replicas[1])).await;
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    until("it probes alone", || replicas[0].probe().is_some()).await;
    redis.signal("-CONT");
    until("it is joined again", || replicas.iter().all(is_up)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_was_killed_and_comes_back_empty_learns_what_stands() {
    let mut redis = Redis::start(&[]);
    let replicas = joined(2, || config(&redis)).await;
    redis.kill();
    until("it is noticed", || replicas.iter().all(|it| !is_up(it))).await;
    replicas[0].breaker.trip_for(SECOND * 60, "429", "while nobody listened");
    redis.start_again();
    until("the other one learns", || replicas[1].breaker.snapshot().cause == Some(Cause::Cooldown)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_full_server_passes_news_on_and_each_replica_probes_by_itself() {
    let redis = Redis::start(&[]);
    let replicas = joined(2, || config(&redis)).await;
    assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    until("it is full", || replicas.iter().all(|it| it.fleet().snapshot().refused)).await;
    all_open(&replicas).await;
    let mut found = Vec::new();
    until("both probe", || {
        found.extend(probes(&replicas));
        found.len() == 2
    })
    .await;
    assert!(replicas.iter().all(is_up));
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    until("it takes news again", || replicas.iter().all(|it| !it.fleet().snapshot().refused)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_became_a_replica_is_left() {
    let redis = Redis::start(&[]);
    let replicas = joined(2, || config(&redis)).await;
    redis.cli(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    until("it is left", || replicas.iter().all(|it| !is_up(it))).await;
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    until("it is joined again", || replicas.iter().all(is_up)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_replica_that_is_not_written_for_reads_what_is_no_message() {
    let redis = Redis::start(&[]);
    let replicas = joined(1, || config(&redis)).await;
    let say = |message: &str| redis.cli(&["PUBLISH", "{fusebox:default}:news", message]);
    for message in ["", "[]", &"x".repeat(100_000), r#"{"v":1,"kind":"open","provider":"q","replica":"r","ms":5000}"#] {
        assert_eq!(say(message), "1");
    }
    say(r#"{"v":1,"kind":"open","provider":"p","replica":"stranger","ms":18446744073709551615,"new":[]}"#);
    until("the one that was meant is heard", || replicas[0].breaker.failure_count() == 2).await;
    assert_eq!(replicas[0].fleet().snapshot().heard["open"], 1);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_password_lets_in_and_a_wrong_one_does_not() {
    let redis = Redis::start(&["--requirepass", "open sesame"]);
    let fleet = |password: &str| Replica::with(breaker(), config(&redis).password(password));
    let wrong = fleet("open barley");
    let right = fleet("open sesame");
    until("the right one is in", || is_up(&right)).await;
    assert!(!is_up(&wrong));
    assert_eq!(right.fleet().snapshot().replicas, 1);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn tls_trusts_the_certificates_that_are_named_and_no_others() {
    let folder = std::env::temp_dir().join(format!("fusebox-redis-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let tls_port = free_port().to_string();
    let [cert_path, key_path] = [&cert, &key].map(|path| path.to_str().unwrap());
    let _redis = Redis::start(&[
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        cert_path,
        "--tls-key-file",
        key_path,
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://localhost:{tls_port}");
    let stranger = Replica::with(breaker(), FleetConfig::redis(&url).unwrap());
    let known = FleetConfig::redis(&url).unwrap().trusted_certificates(own.cert.pem()).unwrap();
    let known = Replica::with(breaker(), known);
    until("it is joined", || is_up(&known)).await;
    assert!(!is_up(&stranger));
    std::fs::remove_dir_all(folder).unwrap();
}

//! Redis or Valkey, by one connection with RESP3: the answers and the others' messages come in the order in which the
//! server sent them.
//!
//! Each script publishes first and writes second: a server that has reached its `maxmemory` refuses to write, and would
//! otherwise say nothing. Times are those of the server, read inside the scripts, and leave it as milliseconds that are
//! left. All keys of a group have one hash tag, so that they are in one slot of a cluster.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError,
    Script, ScriptInvocation, TlsCertificates, Value,
};
use tokio::sync::mpsc;

use super::{Lease, Said, Standing, Stands, Trouble};
use crate::fleet::message::{Kind, Message};

/// For connecting, and for what nobody waits for.
const PATIENCE: Duration = Duration::from_secs(1);

macro_rules! script {
    ($file:literal) => {
        LazyLock::new(|| Script::new(concat!(include_str!("redis/now.lua"), include_str!($file))))
    };
}

static OPEN: LazyLock<Script> = script!("redis/open.lua");
static COOLDOWN: LazyLock<Script> = script!("redis/cooldown.lua");
static CLOSED: LazyLock<Script> = script!("redis/closed.lua");
static FAILED: LazyLock<Script> = script!("redis/failed.lua");
static LEASE: LazyLock<Script> = script!("redis/lease.lua");
static GIVE_BACK: LazyLock<Script> = script!("redis/give_back.lua");
static OPINION: LazyLock<Script> = script!("redis/opinion.lua");
static SYNC: LazyLock<Script> = script!("redis/sync.lua");

/// A server, to connect to.
pub(in crate::fleet) struct Server {
    client: Client,
    /// Without the password.
    pub(in crate::fleet) shown: String,
}

impl Server {
    /// `ca`: certificates in PEM, in place of those that the system trusts.
    pub(in crate::fleet) fn new(
        url: &str,
        username: Option<&str>,
        password: Option<&str>,
        ca: Option<Vec<u8>>,
    ) -> Result<Self, RedisError> {
        let mut info = url.into_connection_info()?;
        let mut settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        info = info.set_redis_settings(settings);
        let shown = info.addr().to_string();
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. })
            && rustls::crypto::CryptoProvider::get_default().is_none()
        {
            // Another one may have been faster, and is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = match ca {
            Some(ca) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(ca) })?,
            None => Client::open(info)?,
        };
        Ok(Self { client, shown })
    }

    pub(super) async fn connect(&self, group: &str, news: mpsc::Sender<Message>) -> Result<RedisLink, Trouble> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_push_sender(pass_on(news));
        let connected =
            tokio::time::timeout(PATIENCE * 2, self.client.get_multiplexed_async_connection_with_config(&config));
        let mut connection = match connected.await {
            Ok(connected) => connected.map_err(|error| lost(&error))?,
            Err(_) => return Err(Trouble::Lost("it does not answer".to_owned())),
        };
        let keys = Keys::of(group);
        connection.subscribe(&keys.channel).await.map_err(|error| lost(&error))?;
        Ok(RedisLink { connection, keys: Arc::new(keys) })
    }
}

/// Hands messages on until the connection is lost: then the receiver finds that nobody sends any more.
fn pass_on(news: mpsc::Sender<Message>) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> {
    let news = parking_lot::Mutex::new(Some(news));
    move |push| {
        match push.kind {
            PushKind::Disconnection => drop(news.lock().take()),
            PushKind::Message => {
                if let Some(Value::BulkString(bytes)) = push.data.get(1)
                    && let Some(message) = Message::read(bytes)
                    && let Some(news) = &*news.lock()
                {
                    // If there is no room, the next look at what stands finds it.
                    let _ = news.try_send(message);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn lost(error: &RedisError) -> Trouble {
    Trouble::Lost(error.to_string())
}

fn trouble(error: &RedisError) -> Trouble {
    // A server that has become a replica passes messages on to nobody else.
    if error.code() == Some("OOM") { Trouble::Refused(error.to_string()) } else { lost(error) }
}

/// The names of a group's keys.
struct Keys {
    prefix: String,
    channel: String,
}

impl Keys {
    fn of(group: &str) -> Self {
        let prefix = format!("{{fusebox:{group}}}");
        Self { channel: format!("{prefix}:news"), prefix }
    }

    fn of_provider(&self, what: &str, provider: &str) -> String {
        format!("{}:{what}:{provider}", self.prefix)
    }

    fn shared(&self, what: &str) -> String {
        format!("{}:{what}", self.prefix)
    }
}

/// Provider, replica, milliseconds that are left, and whether it is a cooldown.
type Row = (String, String, u64, bool);

#[derive(Clone)]
pub(in crate::fleet) struct RedisLink {
    connection: MultiplexedConnection,
    keys: Arc<Keys>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl RedisLink {
    async fn run<T: redis::FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Trouble> {
        script.invoke_async(&mut self.connection.clone()).await.map_err(|error| trouble(&error))
    }

    pub(super) async fn say(&self, said: &Said) -> Result<(), Trouble> {
        let Said { message, stands } = said;
        let Message { provider, replica, .. } = message;
        let key = |what| self.keys.of_provider(what, provider);
        let script = match message.kind {
            Kind::Alive => {
                let mut publish = redis::cmd("PUBLISH");
                publish.arg(&self.keys.channel).arg(message.write());
                return publish.query_async(&mut self.connection.clone()).await.map_err(|error| trouble(&error));
            }
            Kind::Open if message.is_cooldown() => &COOLDOWN,
            Kind::Open => &OPEN,
            Kind::Closed => &CLOSED,
            Kind::Failed => &FAILED,
        };
        let mut script = script.prepare_invoke();
        script.key(self.keys.shared("standing"));
        for what in ["open", "cooldown", "lease", "failed", "opinions"] {
            script.key(key(what));
        }
        script.arg(&self.keys.channel).arg(message.write()).arg(replica).arg(provider).arg(millis(*stands));
        self.run(&script).await
    }

    pub(super) async fn lease(&self, provider: &str, replica: &str, length: Duration) -> Result<Lease, Trouble> {
        let mut script = LEASE.prepare_invoke();
        for what in ["lease", "failed"] {
            script.key(self.keys.of_provider(what, provider));
        }
        let (answer, left): (String, u64) = self.run(script.arg(replica).arg(millis(length))).await?;
        let left = Duration::from_millis(left);
        Ok(match &*answer {
            "granted" => Lease::Granted,
            "held" => Lease::Held(left),
            _ => Lease::Failed(left),
        })
    }

    pub(super) async fn give_back(&self, provider: &str, replica: &str) -> Result<(), Trouble> {
        self.run(GIVE_BACK.key(self.keys.of_provider("lease", provider)).arg(replica)).await
    }

    pub(super) async fn opinion(&self, provider: &str, replica: &str, length: Duration) -> Result<bool, Trouble> {
        let mut script = OPINION.key(self.keys.of_provider("opinions", provider));
        self.run(script.arg(replica).arg(millis(length))).await
    }

    pub(super) async fn sync(
        &self,
        replica: &str,
        there_for: Duration,
        renewed: &[(Arc<str>, Duration)],
    ) -> Result<Standing, Trouble> {
        let mut script = SYNC.prepare_invoke();
        script.key(self.keys.shared("standing")).key(self.keys.shared("replicas"));
        script.arg(replica).arg(millis(there_for)).arg(&self.keys.prefix);
        for (provider, stands) in renewed {
            script.arg(&**provider).arg(millis(*stands));
        }
        let (refused, replicas, openings): (String, usize, Vec<Row>) = self.run(&script).await?;
        if refused.contains("READONLY") {
            return Err(Trouble::Lost(refused));
        }
        let openings = openings.into_iter().map(|(provider, replica, left, is_cooldown)| Stands {
            provider,
            replica,
            left: Duration::from_millis(left),
            is_cooldown,
        });
        Ok(Standing { replicas, openings: openings.collect(), refused: Some(refused).filter(|why| !why.is_empty()) })
    }
}

//! What the replicas of a group share: their messages, and what stands while nobody says anything.
//!
//! Not here: what follows from it: `topic`.

pub(super) mod hub;
pub(super) mod redis;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use self::hub::HubLink;
use self::redis::RedisLink;
use super::message::Message;

/// So many messages wait to be read. More are dropped: what stands is read again by the next look.
const WAITING: usize = 4096;

/// What a replica may tell the store in one step.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) message: Message,
    /// For how long it stands in the store, for those who come later.
    pub(super) stands: Duration,
}

/// Whether a replica is the one that probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    Granted,
    /// Another one is, for so long at most.
    Held(Duration),
    /// A probe has failed, and nobody is to probe for so long.
    Failed(Duration),
}

/// What stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) replicas: usize,
    pub(super) openings: Vec<Stands>,
    /// Why the store takes nothing new, if it does not.
    pub(super) refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stands {
    pub(super) provider: String,
    pub(super) replica: String,
    pub(super) left: Duration,
    pub(super) is_cooldown: bool,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It takes nothing new, and passes messages on.
    Refused(String),
    /// It is gone, or no longer the one to talk to.
    Lost(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(why) | Self::Lost(why)) = self;
        f.write_str(why)
    }
}

/// A store, to connect to.
#[derive(Clone)]
pub(super) enum Store {
    Redis(Arc<redis::Server>),
    Hub(hub::Hub),
}

/// A connection to it.
#[derive(Clone)]
pub(super) enum Link {
    Redis(RedisLink),
    Hub(HubLink),
}

/// What the others say, until the connection is lost.
pub(super) type News = mpsc::Receiver<Message>;

impl Store {
    /// Where it is, without a password.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Redis(server) => server.shown.clone(),
            Self::Hub(_) => "this process".to_owned(),
        }
    }

    /// Connects, and listens.
    pub(super) async fn connect(&self, group: &str, replica: &str) -> Result<(Link, News), Trouble> {
        let (sender, news) = mpsc::channel(WAITING);
        let link = match self {
            Self::Redis(server) => Link::Redis(server.connect(group, sender).await?),
            Self::Hub(hub) => Link::Hub(hub.connect(group, replica, sender)?),
        };
        Ok((link, news))
    }
}

impl Link {
    pub(super) async fn say(&self, said: &Said) -> Result<(), Trouble> {
        match self {
            Self::Redis(link) => link.say(said).await,
            Self::Hub(link) => link.say(said).await,
        }
    }

    /// Asks to be the one that probes, or to stay so.
    pub(super) async fn lease(&self, provider: &str, replica: &str, length: Duration) -> Result<Lease, Trouble> {
        match self {
            Self::Redis(link) => link.lease(provider, replica, length).await,
            Self::Hub(link) => link.lease(provider, replica, length).await,
        }
    }

    /// Is no longer the one that probes.
    pub(super) async fn give_back(&self, provider: &str, replica: &str) -> Result<(), Trouble> {
        match self {
            Self::Redis(link) => link.give_back(provider, replica).await,
            Self::Hub(link) => link.give_back(provider, replica).await,
        }
    }

    /// Asks to be one of the two that look whether what is heard is so.
    pub(super) async fn opinion(&self, provider: &str, replica: &str, length: Duration) -> Result<bool, Trouble> {
        match self {
            Self::Redis(link) => link.opinion(provider, replica, length).await,
            Self::Hub(link) => link.opinion(provider, replica, length).await,
        }
    }

    /// Says that the replica is there for so long, and which of its openings still stand; and reads what stands.
    pub(super) async fn sync(
        &self,
        replica: &str,
        there_for: Duration,
        renewed: &[(Arc<str>, Duration)],
    ) -> Result<Standing, Trouble> {
        match self {
            Self::Redis(link) => link.sync(replica, there_for, renewed).await,
            Self::Hub(link) => link.sync(replica, there_for, renewed).await,
        }
    }
}

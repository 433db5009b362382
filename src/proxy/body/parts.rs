//! A body in at most three parts: what stands before a model's name, the name, and what stands after it. So a name is
//! replaced without copying a long body.

use bytes::Bytes;

#[derive(Clone, Debug, Default)]
pub(crate) struct Parts([Bytes; 3]);

impl Parts {
    pub(crate) fn new(parts: [Bytes; 3]) -> Self {
        Self(parts)
    }

    /// The next part that is not empty.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        self.0.iter_mut().find(|part| !part.is_empty()).map(std::mem::take)
    }

    /// All of them in one piece.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self.0 {
            [whole, second, third] if second.is_empty() && third.is_empty() => whole,
            parts => parts.concat().into(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|part| part.len() as u64).sum()
    }
}

impl From<Bytes> for Parts {
    fn from(whole: Bytes) -> Self {
        Self([whole, Bytes::new(), Bytes::new()])
    }
}

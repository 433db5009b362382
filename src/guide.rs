//! [`choosing`]: self::choosing
//! [`dropping`]: self::dropping
//! [`waiting`]: self::waiting
//! [`outcomes`]: self::outcomes
//! [`policies`]: self::policies
//! [`testing`]: self::testing
//! [`integrating`]: self::integrating
//! [`tower`]: self::tower
//! [`fleet`]: self::fleet
//! [`observing`]: self::observing
//! [`the_word`]: self::the_word
//! [`migrating`]: self::migrating
#![doc = include_str!("../docs/guide/README.md")]
// For rustdoc alone. The text is in `docs/guide`, and its code runs as doctests. The links above override those of the
// file, which are for readers of the file itself.

#[doc = include_str!("../docs/guide/choosing.md")]
pub mod choosing {}
#[doc = include_str!("../docs/guide/dropping.md")]
pub mod dropping {}
#[cfg(feature = "fleet")]
#[doc = include_str!("../docs/guide/fleet.md")]
pub mod fleet {}
#[doc = include_str!("../docs/guide/integrating.md")]
pub mod integrating {}
#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}
#[doc = include_str!("../docs/guide/observing.md")]
pub mod observing {}
#[doc = include_str!("../docs/guide/outcomes.md")]
pub mod outcomes {}
#[doc = include_str!("../docs/guide/policies.md")]
pub mod policies {}
#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}
#[doc = include_str!("../docs/guide/the_word.md")]
pub mod the_word {}
#[cfg(feature = "tower")]
#[doc = include_str!("../docs/guide/tower.md")]
pub mod tower {}
#[doc = include_str!("../docs/guide/waiting.md")]
pub mod waiting {}

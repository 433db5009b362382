//! Every interleaving of a few threads, and every value that a load may return, up to loom's preemption bound.
//!
//! Each model is named after the rule it proves, and says which ends its race may come to. Pure readers are the spawned
//! threads, and whoever writes is the first: loom finds more that way round (its issues 166 and 392). Where a waiter
//! has to be one before anything else happens, its future is polled once by the first thread and then moved.

mod by_name;
mod cooldowns;
mod early;
mod entering;
mod generations;
mod harness;
mod hearsay;
mod orders;
mod ramp;
mod rates;
mod recovery;
mod relay;
mod silence;
mod stalls;
mod subscribing;
mod telling;
mod waiting;

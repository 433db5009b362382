//! How a call went, by what came back.

use std::fmt;

use super::error::{BoxError, CircuitOpenError};
use crate::breaker::Outcome;
use crate::error::is_rejection;
use crate::permit::OwnedPermit;

/// Judges what a service answers: it resolves the permit, at once or when a streamed body ends, and says what the
/// caller gets.
///
/// Most services need none of their own: see the table in the [module](super#what-counts).
pub trait Classify<Response, Error> {
    /// What the caller gets.
    type Response;
    /// What the caller gets if the call failed.
    type Error;

    /// The inner service answered, or was not ready for a reason that is an error. Dropping `permit` is an outcome as
    /// well: see [`Permit`](crate::Permit#dropping).
    ///
    /// # Errors
    ///
    /// The caller's error, if that is what the call ends with.
    fn judge(&self, result: Result<Response, Error>, permit: OwnedPermit) -> Result<Self::Response, Self::Error>;

    /// The inner service cannot take this call or any other one: its `poll_ready` failed. There is a permit if the
    /// breaker is known, and would have let the call pass.
    fn not_ready(&self, error: Error, permit: Option<OwnedPermit>) -> Self::Error;

    /// The breaker rejected the call.
    ///
    /// # Errors
    ///
    /// The caller's error, unless the rejection is told in a response.
    fn reject(&self, rejection: CircuitOpenError) -> Result<Self::Response, Self::Error>;
}

/// Every error is a failure but the rejection of a breaker further inside: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Errors;

impl<Response, Error: Into<BoxError>> Classify<Response, Error> for Errors {
    type Response = Response;
    type Error = BoxError;

    #[inline]
    fn judge(&self, result: Result<Response, Error>, permit: OwnedPermit) -> Result<Response, BoxError> {
        match result {
            Ok(response) => {
                permit.success();
                Ok(response)
            }
            Err(error) => Err(failed(error.into(), permit)),
        }
    }

    fn not_ready(&self, error: Error, permit: Option<OwnedPermit>) -> BoxError {
        match permit {
            Some(permit) => failed(error.into(), permit),
            None => error.into(),
        }
    }

    fn reject(&self, rejection: CircuitOpenError) -> Result<Response, BoxError> {
        Err(rejection.into())
    }
}

/// Records an error, and returns it.
#[cold]
pub(super) fn failed(error: BoxError, permit: OwnedPermit) -> BoxError {
    if is_rejection(&*error) {
        permit.cancel();
    } else {
        permit.failure("error", &error);
    }
    error
}

/// A function says how a call went: see [`CircuitBreakerLayer::classify`](super::CircuitBreakerLayer::classify).
#[derive(Clone, Copy)]
pub struct ByFn<F>(pub(super) F);

impl<Response, Error, F> Classify<Response, Error> for ByFn<F>
where
    F: Fn(&Result<Response, Error>) -> Outcome,
    Error: Into<BoxError>,
{
    type Response = Response;
    type Error = BoxError;

    fn judge(&self, result: Result<Response, Error>, permit: OwnedPermit) -> Result<Response, BoxError> {
        permit.resolve(self.0(&result));
        result.map_err(Into::into)
    }

    fn not_ready(&self, error: Error, permit: Option<OwnedPermit>) -> BoxError {
        // The function is asked by reference, for a result that there is to give back.
        let result: Result<Response, Error> = Err(error);
        if let Some(permit) = permit {
            permit.resolve(self.0(&result));
        }
        match result {
            Err(error) => error.into(),
            Ok(_) => unreachable!("it is an error"),
        }
    }

    fn reject(&self, rejection: CircuitOpenError) -> Result<Response, BoxError> {
        Err(rejection.into())
    }
}

impl<F> fmt::Debug for ByFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByFn")
    }
}

//! Telling pages what happens: transitions when they are made, and the figures of every second.
//!
//! Not here: the figures: `observe::figures`; their form: `view`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::view::{TransitionView, View};
use crate::Transition;
use crate::proxy::state::AppState;

const EVERY: Duration = Duration::from_secs(1);

/// Takes the figures of every second, and tells the pages that look, until it is dropped.
pub(crate) async fn tell(app: Arc<AppState>) {
    let mut seconds = interval(EVERY);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        {
            let live = app.live();
            app.figures.sample(&app.metrics, live.providers.iter().map(|provider| &**provider));
        }
        // One text for all of them.
        if app.pages.receiver_count() > 0 {
            app.pages.send_replace(text(&View::of_a_second(&app)).into());
        }
    }
}

/// What one page has been told.
struct Listening {
    first: Option<String>,
    /// Only the newest figures matter to a page that reads slowly.
    figures: watch::Receiver<Arc<str>>,
    transitions: broadcast::Receiver<Arc<Transition>>,
}

/// The answer to `GET /admin/v1/events`: first the whole view, then what is new.
pub(super) fn listen(app: &AppState) -> Response {
    // Before the view, so that nothing is missed between the two.
    let (mut figures, transitions) = (app.pages.subscribe(), app.chronicle.subscribe());
    figures.mark_unchanged();
    let first = Some(text(&View::whole(app)));
    let listening = Listening { first, figures, transitions };
    let events = stream::unfold(listening, |mut listening| async move {
        let event = listening.next().await?;
        Some((Ok::<_, Infallible>(event), listening))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

impl Listening {
    /// `None` when the gateway ends.
    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(Event::default().event("circuits").data(first));
        }
        tokio::select! {
            told = self.transitions.recv() => match told {
                Ok(told) => Some(Event::default().event("transition").data(text(&TransitionView::of(&told)))),
                // The next figures show where the circuits are.
                Err(RecvError::Lagged(missed)) => Some(Event::default().event("missed").data(missed.to_string())),
                Err(RecvError::Closed) => None,
            },
            changed = self.figures.changed() => {
                changed.ok()?;
                let text = Arc::clone(&self.figures.borrow_and_update());
                (!text.is_empty()).then(|| Event::default().event("figures").data(&*text))
            }
        }
    }
}

fn text(shown: &impl Serialize) -> String {
    serde_json::to_string(shown).expect("texts and numbers")
}

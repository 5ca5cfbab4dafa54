//! Films of several shots: what has changed is rendered, and all of it is put together.

mod assemble;
mod film;
mod plan;
mod sections;

pub use assemble::{FilmMade, ShotMade};
pub use film::{Film, Reference, Settings, Shot, Transition};
pub use plan::{PlannedShot, Storyboard, StoryboardRequest, shots_beside};

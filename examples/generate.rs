//! Makes a clip through the library, as a program of your own would.
//!
//! ```sh
//! cargo run --release --example generate -- "a dog running on a beach" dog.mp4
//! ```

use sora::{
    app::{
        generate::{GenerateRequest, Job},
        outputs::Outputs,
    },
    event::Silent,
};

fn main() -> sora::Result<()> {
    let mut words = std::env::args().skip(1);
    let prompt = words.next().unwrap_or_else(|| "pirate ships in coffee".into());
    let request = GenerateRequest {
        prompt,
        seed: Some(1),
        outputs: Outputs { target: words.next().or_else(|| Some("out.mp4".into())), ..Outputs::default() },
        ..GenerateRequest::default()
    };
    let mut job = Job::prepare(&request, &Silent)?;
    while let Some(clip) = job.next_clip()? {
        clip.verdict()?;
    }
    Ok(())
}

//! Measures a long clip: how far its colour drifts from window to window, and whether the joins are seen.
//!
//! ```sh
//! cargo run --release --example take                             # the embedded model, ten windows
//! cargo run --release --example take -- "a ship on the sea" 10 path/to/model
//! ```

use sora::{
    app::{
        generate::{GenerateRequest, Job},
        inspect::inspect,
        outputs::Outputs,
        shape::LengthChoice,
    },
    event::Silent,
    media::read_clip,
    models::source::ModelSource,
    video::Frame,
};

fn main() -> sora::Result<()> {
    let mut words = std::env::args().skip(1);
    let prompt = words.next().unwrap_or_else(|| "a sailboat on the sea".into());
    let wanted: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or(10);
    let model = words.next().map_or(ModelSource::Embedded, |path| ModelSource::Folder(path.into()));
    let info = inspect(&model)?.info;
    let (geometry, defaults) = (&info.geometry, &info.defaults);
    let or = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
    let window = or(defaults.window, defaults.frames);
    let latent = |frames: usize| (frames - 1) / geometry.temporal + 1;
    let (length, shared) = (latent(window), latent(or(defaults.overlap, window.div_ceil(3))));
    let added = (length - shared) * geometry.temporal;
    let frames = window + (wanted - 1) * added;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("take.mkv");
    let mut outputs = Outputs { target: Some(path.to_string_lossy().into()), ..Outputs::default() };
    outputs.encode.codec = Some("ffv1".parse()?);
    let request = GenerateRequest {
        model,
        prompt,
        length: LengthChoice::Frames(frames),
        seed: Some(1),
        outputs,
        ..GenerateRequest::default()
    };
    let mut job = Job::prepare(&request, &Silent)?;
    while job.next_clip()?.is_some() {}

    let mut means: Vec<[f64; 3]> = Vec::new();
    let mut steps: Vec<f64> = Vec::new();
    let mut before: Option<Frame> = None;
    for frame in read_clip(&path)? {
        let frame = frame?;
        means.push(mean(&frame));
        if let Some(before) = &before {
            steps.push(difference(before, &frame));
        }
        before = Some(frame);
    }
    let starts = (0..wanted).map(|i| if i == 0 { 0 } else { window + (i - 1) * added });
    let spans: Vec<_> =
        starts.map(|start| (start, if start == 0 { window } else { start + added })).collect();
    let colours: Vec<[f64; 3]> = spans.iter().map(|&(from, to)| average(&means[from..to])).collect();
    let median = median(&steps);
    println!("{frames} frames in {wanted} windows of {window}, {added} new ones each; bytes of 0..255");
    println!(
        "{:>7}{:>8}{:>8}{:>8}{:>12}{:>12}{:>16}",
        "window", "red", "green", "blue", "from last", "from first", "join/median"
    );
    let apart = |a: [f64; 3], b: [f64; 3]| (0..3).map(|i| (a[i] - b[i]).abs()).fold(0.0, f64::max);
    for (i, colour) in colours.iter().enumerate() {
        let [red, green, blue] = colour;
        print!("{:>7}{red:>8.1}{green:>8.1}{blue:>8.1}", i + 1);
        if i > 0 {
            let join = steps[spans[i].0 - 1] / median;
            print!(
                "{:>12.2}{:>12.2}{join:>16.2}",
                apart(*colour, colours[i - 1]),
                apart(*colour, colours[0])
            );
        }
        println!();
    }
    let drift = apart(colours[0], colours[wanted - 1]) / (wanted - 1).max(1) as f64;
    println!("drift {drift:.2} a window; median step {median:.2}");
    Ok(())
}

fn mean(frame: &Frame) -> [f64; 3] {
    let mut sum = [0.0; 3];
    for pixel in frame.rgb.chunks_exact(3) {
        (0..3).for_each(|i| sum[i] += f64::from(pixel[i]));
    }
    sum.map(|sum| sum / (frame.width * frame.height) as f64)
}

fn average(colours: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|i| colours.iter().map(|colour| colour[i]).sum::<f64>() / colours.len() as f64)
}

/// Mean absolute difference of two frames.
fn difference(a: &Frame, b: &Frame) -> f64 {
    let sum: f64 = a.rgb.iter().zip(&b.rgb).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum();
    sum / a.rgb.len() as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0).max(1e-9)
}

//! Measures what each camera and style word of a model does: the motion of the whole picture, and its colour.
//!
//! ```sh
//! cargo run --release --example direction                    # the embedded model
//! cargo run --release --example direction -- path/to/model 6 # another, six clips a word
//! ```

use std::collections::BTreeMap;

use sora::{
    app::{
        direction::Directing,
        generate::{GenerateRequest, Job},
        inspect::inspect,
        outputs::Outputs,
    },
    event::Silent,
    media::read_clip,
    models::source::ModelSource,
    video::Frame,
};

const PROMPTS: [&str; 3] = ["a red car in the city", "a pirate ship on the sea", "a robot in the desert"];

/// What a clip looks like as a whole.
#[derive(Default, Clone, Copy)]
struct Measured {
    /// Pixels a second that the picture's content goes to the right and down, per 100 pixels of width.
    right: f64,
    down: f64,
    /// Per cent that it grows a second.
    zoom: f64,
    /// Mean distance of the channels from grey, 0..255.
    colour: f64,
}

fn main() -> sora::Result<()> {
    let mut words = std::env::args().skip(1);
    let model = words.next().map_or(ModelSource::Embedded, |path| ModelSource::Folder(path.into()));
    let seeds: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    let table = inspect(&model)?.info.defaults.direction;
    let folder = tempfile::tempdir().expect("a temporary folder");
    println!("{:24}{:>10}{:>10}{:>10}{:>10}", "", "right", "down", "zoom", "colour");
    let row = |name: &str, directing: Directing| -> sora::Result<()> {
        let mut sum = Measured::default();
        let mut count = 0.0;
        for prompt in PROMPTS {
            for seed in 1..=seeds {
                let path = folder.path().join("clip.mkv");
                let mut outputs =
                    Outputs { target: Some(path.to_string_lossy().into()), ..Outputs::default() };
                outputs.encode.codec = Some("ffv1".parse()?);
                let request = GenerateRequest {
                    model: model.clone(),
                    prompt: prompt.into(),
                    directing: directing.clone(),
                    seed: Some(seed),
                    outputs,
                    ..GenerateRequest::default()
                };
                let mut job = Job::prepare(&request, &Silent)?;
                while job.next_clip()?.is_some() {}
                let clip = read_clip(&path)?;
                let fps = clip.fps();
                let one = measure(&clip.collect::<sora::Result<Vec<_>>>()?, fps);
                sum.right += one.right;
                sum.down += one.down;
                sum.zoom += one.zoom;
                sum.colour += one.colour;
                count += 1.0;
            }
        }
        let Measured { right, down, zoom, colour } = sum;
        println!(
            "{name:24}{:>10.2}{:>10.2}{:>10.2}{:>10.1}",
            right / count,
            down / count,
            zoom / count,
            colour / count
        );
        Ok(())
    };
    row("(no word)", Directing::default())?;
    let keys = |table: &BTreeMap<String, String>| table.keys().cloned().collect::<Vec<_>>();
    for word in keys(&table.camera) {
        row(&format!("camera {word}"), Directing { camera: Some(word.parse()?), ..Directing::default() })?;
    }
    for word in keys(&table.style) {
        row(&format!("style {word}"), Directing { style: Some(word), ..Directing::default() })?;
    }
    Ok(())
}

/// Averages over a clip, frame to frame.
fn measure(frames: &[Frame], fps: f64) -> Measured {
    let greys: Vec<Vec<f64>> = frames.iter().map(grey).collect();
    let (width, height) = (frames[0].width, frames[0].height);
    let steps = greys.windows(2).map(|pair| flow(&pair[0], &pair[1], width, height));
    let mut sum = [0.0; 3];
    let count = greys.len().saturating_sub(1).max(1) as f64;
    for step in steps {
        (0..3).for_each(|i| sum[i] += step[i]);
    }
    let scale = fps / count;
    let share = 100.0 / width as f64;
    let colour = frames.iter().map(colourfulness).sum::<f64>() / frames.len() as f64;
    Measured {
        right: sum[0] * scale * share,
        down: sum[1] * scale * share,
        zoom: sum[2] * scale * 100.0,
        colour,
    }
}

/// Luma, softened so that gradients mean something.
fn grey(frame: &Frame) -> Vec<f64> {
    let Frame { width, height, rgb } = frame;
    let luma: Vec<f64> = rgb
        .chunks_exact(3)
        .map(|p| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2]))
        .collect();
    let at = |x: isize, y: isize| {
        let x = x.clamp(0, *width as isize - 1) as usize;
        luma[y.clamp(0, *height as isize - 1) as usize * width + x]
    };
    let mut soft = Vec::with_capacity(luma.len());
    for y in 0..*height as isize {
        for x in 0..*width as isize {
            let sum: f64 = (-2..=2).flat_map(|dy| (-2..=2).map(move |dx| at(x + dx, y + dy))).sum();
            soft.push(sum / 25.0);
        }
    }
    soft
}

/// The shift (columns, rows) and the growth about the middle that best explain `b` by `a`: least squares on the
/// gradients, refined by warping a few times.
fn flow(a: &[f64], b: &[f64], width: usize, height: usize) -> [f64; 3] {
    let mut found = [0.0; 3];
    let (cx, cy) = ((width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0);
    for _ in 0..6 {
        let (mut m, mut v) = ([[0.0; 3]; 3], [0.0; 3]);
        for y in 3..height - 3 {
            for x in 3..width - 3 {
                let (rx, ry) = (x as f64 - cx, y as f64 - cy);
                let (sx, sy) = (x as f64 + found[0] + found[2] * rx, y as f64 + found[1] + found[2] * ry);
                let Some(seen) = sample(b, width, height, sx, sy) else { continue };
                let at = y * width + x;
                let (gx, gy) = ((a[at + 1] - a[at - 1]) / 2.0, (a[at + width] - a[at - width]) / 2.0);
                let g = [gx, gy, gx * rx + gy * ry];
                let error = a[at] - seen;
                // Large differences are things that move by themselves.
                let weight = 1.0 / (1.0 + (error / 10.0).powi(2));
                for i in 0..3 {
                    v[i] += weight * g[i] * error;
                    (0..3).for_each(|j| m[i][j] += weight * g[i] * g[j]);
                }
            }
        }
        let Some(step) = solve(m, v) else { break };
        (0..3).for_each(|i| found[i] += step[i]);
    }
    found
}

fn sample(image: &[f64], width: usize, height: usize, x: f64, y: f64) -> Option<f64> {
    if x < 0.0 || y < 0.0 || x >= (width - 1) as f64 || y >= (height - 1) as f64 {
        return None;
    }
    let (x0, y0) = (x as usize, y as usize);
    let (fx, fy) = (x - x0 as f64, y - y0 as f64);
    let at = |x: usize, y: usize| image[y * width + x];
    let top = at(x0, y0) * (1.0 - fx) + at(x0 + 1, y0) * fx;
    Some(top * (1.0 - fy) + (at(x0, y0 + 1) * (1.0 - fx) + at(x0 + 1, y0 + 1) * fx) * fy)
}

/// Cramer's rule; nothing for a picture without structure.
fn solve(m: [[f64; 3]; 3], v: [f64; 3]) -> Option<[f64; 3]> {
    let determinant = |m: [[f64; 3]; 3]| {
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    };
    let whole = determinant(m);
    if whole.abs() < 1e-9 {
        return None;
    }
    let mut solved = [0.0; 3];
    for (i, value) in solved.iter_mut().enumerate() {
        let mut with = m;
        (0..3).for_each(|row| with[row][i] = v[row]);
        *value = determinant(with) / whole;
    }
    Some(solved)
}

fn colourfulness(frame: &Frame) -> f64 {
    let from_grey = |p: &[u8]| {
        let mean = p.iter().map(|&c| f64::from(c)).sum::<f64>() / 3.0;
        p.iter().map(|&c| (f64::from(c) - mean).abs()).sum::<f64>() / 3.0
    };
    frame.rgb.chunks_exact(3).map(from_grey).sum::<f64>() / (frame.width * frame.height) as f64
}

//! What an autoencoder loses of held pictures, put back where the video still shows them.
//!
//! A picture that is held comes out of the autoencoder soft. What it lost there, the picture less the frame that was
//! decoded in its place, is added to that frame and to its neighbours in time, pixel by pixel as far as they still
//! are that frame: what stands still keeps its detail, what moves away becomes the model's own. Detail transfer of
//! this kind is known from photographs (Petschnigg and others, "Digital photography with flash and no-flash image
//! pairs", 2004); decoders that are trained to look at the picture do the same better (ToonCrafter, Xing and others,
//! 2024), but no published checkpoint here has one.

use std::{collections::VecDeque, path::PathBuf};

use crate::{
    app::seam::{LEAST, fade, step},
    error::Result,
    video::{Frame, FrameSink},
};

/// Frames before and after a picture to which its detail reaches. Those before it wait in memory.
const REACH: usize = 32;

/// Levels of 255 by which the surroundings of a pixel may change before its detail is that of something else.
const ALIKE: f32 = 12.0;

/// The same between a picture and the frame decoded in its place: what differs by more isn't detail, and isn't held.
const SAME: f32 = 64.0;

/// Steps that are wider than this many median ones get no wider by detail that comes or goes, and none gets so wide.
const WIDEST: f64 = 1.4;

/// Frames that wait so that what is a usual step is known.
const AHEAD: usize = 16;

/// A picture that a frame of the video holds, in the video's size.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its frame, from 0.
    pub frame: usize,
    /// The picture.
    pub picture: Frame,
}

/// Puts the detail of held pictures back into frames on their way into another sink.
pub struct DetailSink<S: FrameSink> {
    inner: S,
    /// Those that are still to come, in order.
    held: VecDeque<Held>,
    /// Frames that are still to be looked at.
    ahead: VecDeque<Frame>,
    /// The steps to the frames that came last, those ahead among them.
    steps: VecDeque<f64>,
    /// Frames that were looked at.
    count: usize,
    /// The detail of the picture that came last.
    after: Option<Trail>,
    /// Frames that are near the next picture, each as it was decoded and as it is so far.
    waiting: Vec<(Frame, Frame)>,
}

impl<S: FrameSink> DetailSink<S> {
    /// In front of `inner`.
    pub fn new(inner: S, mut held: Vec<Held>) -> Self {
        held.sort_by_key(|held| held.frame);
        held.dedup_by_key(|held| held.frame);
        let (ahead, steps) = (VecDeque::new(), VecDeque::new());
        Self { inner, held: held.into(), ahead, steps, count: 0, after: None, waiting: Vec::new() }
    }

    /// A usual step hereabouts.
    fn usual(&self) -> f64 {
        let mut steps: Vec<f64> = self.steps.iter().copied().collect();
        steps.sort_by(f64::total_cmp);
        steps.get(steps.len() / 2).copied().unwrap_or_default()
    }

    /// Adds what is due of the picture that came last.
    fn follow(&mut self, raw: &Frame) -> Frame {
        let mut made = raw.clone();
        let usual = self.usual();
        self.after.iter_mut().for_each(|trail| trail.pass(raw, &mut made, usual));
        self.after = self.after.take().filter(|trail| !trail.is_spent());
        made
    }

    fn flush(&mut self) -> Result<()> {
        self.waiting.drain(..).try_for_each(|(_, made)| self.inner.push(made))
    }

    fn look_at(&mut self, raw: Frame) -> Result<()> {
        let at = self.count;
        self.count += 1;
        let away = self.held.front().map_or(usize::MAX, |next| next.frame - at);
        let due = if away == 0 { self.held.pop_front() } else { None };
        let Some(Held { picture, .. }) = due else {
            let made = self.follow(&raw);
            if away < REACH {
                self.waiting.push((raw, made));
                return Ok(());
            }
            return self.inner.push(made);
        };
        let following = self.held.front().map_or(REACH, |other| other.frame - at);
        let trail = Trail::begin(&picture, &raw);
        let mut made = raw;
        trail.add(&mut made);
        // Between two pictures each has its way to the other to fade out in.
        let mut back =
            Trail { room: self.after.as_ref().map_or(REACH, |before| before.room), ..trail.clone() };
        let usual = self.usual();
        for (raw, made) in self.waiting.iter_mut().rev() {
            back.pass(raw, made, usual);
        }
        self.flush()?;
        self.after = Some(Trail { room: following.min(REACH), ..trail });
        self.inner.push(made)
    }
}

impl<S: FrameSink> FrameSink for DetailSink<S> {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if self.held.is_empty() && self.after.is_none() {
            self.ahead.drain(..).try_for_each(|frame| self.inner.push(frame))?;
            return self.inner.push(frame);
        }
        if let Some(last) = self.ahead.back() {
            self.steps.push_back(step(last, &frame));
            self.steps.drain(..self.steps.len().saturating_sub(2 * AHEAD));
        }
        self.ahead.push_back(frame);
        let due = if self.steps.len() >= AHEAD { self.ahead.pop_front() } else { None };
        match due {
            Some(frame) => self.look_at(frame),
            None => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<PathBuf> {
        while let Some(frame) = self.ahead.pop_front() {
            self.look_at(frame)?;
        }
        self.flush()?;
        Box::new(self.inner).finish()
    }
}

/// The detail of one picture on its way through neighbouring frames, in one direction.
#[derive(Debug, Clone)]
struct Trail {
    /// The frame that was decoded in the picture's place.
    anchor: Frame,
    /// What it lost, for each value.
    lost: Vec<f32>,
    /// How much of a pixel's loss is detail.
    most: Vec<f32>,
    /// How much of it the frame that was seen last still shows.
    shares: Vec<f32>,
    /// What time leaves of that.
    fade: f32,
    last: Frame,
    passed: usize,
    /// Frames in which it fades out.
    room: usize,
}

impl Trail {
    fn begin(picture: &Frame, anchor: &Frame) -> Self {
        let lost: Vec<f32> =
            picture.rgb.iter().zip(&anchor.rgb).map(|(p, a)| f32::from(*p) - f32::from(*a)).collect();
        // Blurred before it is taken absolutely: detail vanishes, another colour or shape stays.
        let mut apart = vec![0f32; lost.len() / 3];
        for channel in 0..3 {
            let plane: Vec<f32> = lost.iter().skip(channel).step_by(3).copied().collect();
            for (apart, value) in apart.iter_mut().zip(blurred(plane, anchor.width)) {
                *apart += value.abs() / 3.0;
            }
        }
        let most: Vec<f32> = apart.iter().map(|apart| closeness(*apart, SAME)).collect();
        let anchor = anchor.clone();
        Self {
            last: anchor.clone(),
            anchor,
            lost,
            shares: most.clone(),
            fade: 1.0,
            most,
            passed: 0,
            room: REACH,
        }
    }

    /// Whether nothing of it will be added any more.
    fn is_spent(&self) -> bool {
        self.passed >= self.room
    }

    /// Goes on to the next frame and adds to it what is due, without a step that is seen beside a `usual` one.
    fn pass(&mut self, raw: &Frame, made: &mut Frame, usual: f64) {
        self.passed += 1;
        self.fade = fade(self.passed.min(self.room), self.room);
        let pixels = raw.rgb.as_chunks::<3>().0.iter().zip(self.anchor.rgb.as_chunks::<3>().0);
        let apart = pixels.map(|(a, b)| (0..3).map(|i| f32::from(a[i].abs_diff(b[i]))).sum::<f32>() / 3.0);
        let apart = blurred(apart.collect(), raw.width);
        let due = apart.iter().zip(&self.most).map(|(apart, most)| most * closeness(*apart, ALIKE));
        let changes: Vec<f32> = due.zip(&self.shares).map(|(due, share)| due - share).collect();
        let lost = self.lost.as_chunks::<3>().0;
        let sum: f64 = changes
            .iter()
            .zip(lost)
            .map(|(change, lost)| f64::from(change.abs() * lost.iter().map(|v| v.abs()).sum::<f32>()))
            .sum();
        let size = sum / self.lost.len().max(1) as f64;
        let limit = (WIDEST * usual - step(&self.last, raw)).max(LEAST);
        let part = if size > limit { (limit / size) as f32 } else { 1.0 };
        self.shares.iter_mut().zip(&changes).for_each(|(share, change)| *share += part * change);
        self.last.clone_from(raw);
        self.add(made);
    }

    fn add(&self, frame: &mut Frame) {
        let pixels = frame.rgb.as_chunks_mut::<3>().0.iter_mut().zip(self.lost.as_chunks::<3>().0);
        for ((pixel, lost), share) in pixels.zip(&self.shares) {
            for (value, lost) in pixel.iter_mut().zip(lost) {
                *value =
                    (f32::from(*value) + self.fade * share * lost).clamp(0.0, 255.0).round_ties_even() as u8;
            }
        }
    }
}

/// 1 for what isn't apart, falling smoothly; about a third where it is `apart` by the measure.
fn closeness(apart: f32, measure: f32) -> f32 {
    (-(apart / measure).powi(2)).exp()
}

/// Means over squares around each value, of about a twentieth of the shorter side.
fn blurred(values: Vec<f32>, width: usize) -> Vec<f32> {
    let height = values.len() / width.max(1);
    let radius = (width.min(height) / 40).max(1);
    let mut rows = vec![0f32; values.len()];
    for (from, to) in values.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
        means(from.iter().copied(), radius, |x, mean| to[x] = mean);
    }
    let mut all = values;
    for x in 0..width {
        means((0..height).map(|y| rows[y * width + x]), radius, |y, mean| all[y * width + x] = mean);
    }
    all
}

/// The mean of up to `radius` values on each side of every value of a line.
fn means(line: impl Iterator<Item = f32>, radius: usize, mut give: impl FnMut(usize, f32)) {
    let mut sums = vec![0f64];
    for value in line {
        sums.push(sums.last().copied().unwrap_or_default() + f64::from(value));
    }
    let count = sums.len() - 1;
    for i in 0..count {
        let (from, to) = (i.saturating_sub(radius), (i + radius + 1).min(count));
        give(i, ((sums[to] - sums[from]) / (to - from) as f64) as f32);
    }
}

#[cfg(test)]
#[path = "detail_tests.rs"]
mod tests;

//! 255 colours for a whole clip, and the nearest of them for each pixel.

use std::collections::HashMap;

/// Colours a GIF can use beside the one that means "as before".
pub(super) const COLOURS: usize = 255;

/// Counts colours as frames pass; the memory it takes doesn't depend on how many.
pub(super) struct Census {
    /// The distinct colours, as long as all of them fit a palette.
    exact: Option<HashMap<[u8; 3], u8>>,
    /// Colours grouped by the upper five bits of each channel.
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    count: u64,
    sum: [u64; 3],
}

/// A cell's mean colour and how often it was seen.
#[derive(Clone, Copy)]
struct Sample {
    colour: [f64; 3],
    count: f64,
}

impl Census {
    pub fn new() -> Self {
        Self { exact: Some(HashMap::new()), cells: vec![Cell::default(); 1 << 15] }
    }

    /// Counts packed RGB.
    pub fn count(&mut self, rgb: &[u8]) {
        for pixel in rgb.as_chunks::<3>().0 {
            let [r, g, b] = pixel.map(|c| usize::from(c >> 3));
            let cell = &mut self.cells[r << 10 | g << 5 | b];
            cell.count += 1;
            for (sum, value) in cell.sum.iter_mut().zip(pixel) {
                *sum += u64::from(*value);
            }
        }
        if let Some(known) = &mut self.exact {
            for pixel in rgb.as_chunks::<3>().0 {
                let next = known.len();
                known.entry(*pixel).or_insert(next as u8);
                if known.len() > COLOURS {
                    self.exact = None;
                    return;
                }
            }
        }
    }

    /// The palette: the very colours where they are few, else the best that stand for them.
    pub fn palette(self) -> Palette {
        if let Some(exact) = self.exact {
            let mut colours = vec![[0; 3]; exact.len()];
            for (colour, index) in &exact {
                colours[usize::from(*index)] = *colour;
            }
            return Palette { colours, measured: Vec::new(), exact: Some(exact), nearest: Vec::new() };
        }
        let samples: Vec<_> = self.cells.iter().filter(|cell| cell.count > 0).map(Sample::from).collect();
        let mut colours = split(&samples);
        for _ in 0..4 {
            refine(&samples, &mut colours);
        }
        let colours: Vec<_> = colours.iter().map(|colour| colour.map(|c| c.round() as u8)).collect();
        let measured = colours.iter().map(|colour| colour.map(f64::from)).collect();
        Palette { colours, measured, exact: None, nearest: vec![None; 1 << 18] }
    }
}

impl From<&Cell> for Sample {
    fn from(cell: &Cell) -> Self {
        let count = cell.count as f64;
        Self { colour: cell.sum.map(|sum| sum as f64 / count), count }
    }
}

/// The axis along which samples spread most, the squared error along it, and the mean.
fn spread(samples: &[Sample]) -> (usize, f64, f64) {
    let count: f64 = samples.iter().map(|s| s.count).sum();
    let along = |axis: usize| {
        let mean = samples.iter().map(|s| s.colour[axis] * s.count).sum::<f64>() / count;
        let error = samples.iter().map(|s| (s.colour[axis] - mean).powi(2) * s.count).sum::<f64>();
        (axis, error, mean)
    };
    (0..3).map(along).max_by(|a, b| a.1.total_cmp(&b.1)).expect("three axes")
}

/// Divides the samples at the mean of the widest axis, the worst group first.
fn split(samples: &[Sample]) -> Vec<[f64; 3]> {
    let mut groups = vec![(spread(samples), samples.to_vec())];
    while groups.len() < COLOURS {
        let worst = groups.iter().enumerate().max_by(|a, b| a.1.0.1.total_cmp(&b.1.0.1));
        let Some((worst, _)) = worst.filter(|(_, group)| group.0.1 > 0.0) else { break };
        let ((axis, _, mean), group) = groups.swap_remove(worst);
        let (low, high): (Vec<_>, Vec<_>) = group.into_iter().partition(|s| s.colour[axis] <= mean);
        groups.extend(
            [low, high].into_iter().filter(|half| !half.is_empty()).map(|half| (spread(&half), half)),
        );
    }
    groups.iter().map(|(_, group)| mean(group.iter())).collect()
}

fn mean<'a>(samples: impl Iterator<Item = &'a Sample>) -> [f64; 3] {
    let (mut sum, mut count) = ([0.0; 3], 0.0);
    for sample in samples {
        for (sum, value) in sum.iter_mut().zip(sample.colour) {
            *sum += value * sample.count;
        }
        count += sample.count;
    }
    sum.map(|sum| sum / count)
}

/// Moves each colour to the middle of the samples that are nearest to it.
fn refine(samples: &[Sample], colours: &mut [[f64; 3]]) {
    let mut groups: Vec<Vec<Sample>> = vec![Vec::new(); colours.len()];
    for sample in samples {
        groups[nearest(colours, sample.colour)].push(*sample);
    }
    for (colour, group) in colours.iter_mut().zip(groups).filter(|(_, group)| !group.is_empty()) {
        *colour = mean(group.iter());
    }
}

/// At most [`COLOURS`] colours and the way from any colour to its index.
pub(super) struct Palette {
    colours: Vec<[u8; 3]>,
    /// The same, ready to measure distances with.
    measured: Vec<[f64; 3]>,
    exact: Option<HashMap<[u8; 3], u8>>,
    /// Filled as colours are met, by the upper six bits of each channel.
    nearest: Vec<Option<u8>>,
}

impl Palette {
    /// The colours by index.
    pub fn colours(&self) -> &[[u8; 3]] {
        &self.colours
    }

    /// The index for a pixel. The pattern stays where it is from frame to frame, so what doesn't move
    /// doesn't flicker, and costs a GIF nothing.
    pub fn index(&mut self, pixel: [u8; 3], x: usize, y: usize) -> u8 {
        if let Some(index) = self.exact.as_ref().and_then(|exact| exact.get(&pixel)) {
            return *index;
        }
        let offset = PATTERN[y % 8][x % 8];
        let [r, g, b] = pixel.map(|c| (i16::from(c) + offset).clamp(0, 255) >> 2);
        let key = (r as usize) << 12 | (g as usize) << 6 | b as usize;
        match self.nearest[key] {
            Some(index) => index,
            None => {
                let middle = [r, g, b].map(|c| f64::from(c << 2) + 2.0);
                *self.nearest[key].insert(nearest(&self.measured, middle) as u8)
            }
        }
    }
}

/// The index of the colour at the least distance; the first of equals.
fn nearest(colours: &[[f64; 3]], wanted: [f64; 3]) -> usize {
    let (mut best, mut least) = (0, f64::INFINITY);
    for (i, colour) in colours.iter().enumerate() {
        let [r, g, b] = [colour[0] - wanted[0], colour[1] - wanted[1], colour[2] - wanted[2]];
        let distance = r * r + g * g + b * b;
        if distance < least {
            (best, least) = (i, distance);
        }
    }
    best
}

/// Bayer's 8×8 thresholds, as offsets of −4 to 3 levels.
const PATTERN: [[i16; 8]; 8] = {
    let mut pattern = [[0; 8]; 8];
    let mut y = 0;
    while y < 8 {
        let mut x = 0;
        while x < 8 {
            // Interleaves the bits of x ^ y and y from the lowest up: the order of the cells.
            let (mixed, mut rank, mut bit) = (x ^ y, 0, 0);
            while bit < 3 {
                rank = rank << 2 | (mixed >> bit & 1) << 1 | (y >> bit & 1);
                bit += 1;
            }
            pattern[y][x] = (rank as i16) / 8 - 4;
            x += 1;
        }
        y += 1;
    }
    pattern
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_colours_are_kept_as_they_are() {
        let mut census = Census::new();
        census.count(&[1, 2, 3, 250, 3, 77, 1, 2, 3]);
        let mut palette = census.palette();
        assert_eq!(palette.colours(), [[1, 2, 3], [250, 3, 77]]);
        assert_eq!(palette.index([250, 3, 77], 5, 3), 1);
    }

    #[test]
    fn many_colours_are_met_closely() {
        let ramp: Vec<u8> =
            (0..=255_u8).flat_map(|i| (0..16_u8).flat_map(move |j| [i, 255 - i, j * 17])).collect();
        let mut census = Census::new();
        census.count(&ramp);
        let mut palette = census.palette();
        assert!(palette.colours().len() <= COLOURS);
        let error: i32 = ramp
            .as_chunks::<3>()
            .0
            .iter()
            .enumerate()
            .map(|(i, pixel)| {
                let index = usize::from(palette.index(*pixel, i % 16, i / 16));
                let got = palette.colours()[index];
                pixel.iter().zip(got).map(|(a, b)| (i32::from(*a) - i32::from(b)).abs()).sum::<i32>()
            })
            .sum();
        assert!(error < 6 * ramp.len() as i32, "{error} over {} values", ramp.len());
    }

    #[test]
    fn the_pattern_is_level_and_even() {
        let all: Vec<i16> = PATTERN.into_iter().flatten().collect();
        for offset in -4..4 {
            assert_eq!(all.iter().filter(|o| **o == offset).count(), 8);
        }
    }
}

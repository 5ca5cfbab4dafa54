//! A matrix that stays as it is stored and is decoded a few rows at a time.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{
    convert::{self, Raw},
    files::{Entry, Source},
};
use crate::error::Result;

/// A stored matrix `[rows, columns]`, read from its mapped file whenever rows of it are wanted: it takes no memory
/// that the system couldn't take back. Its values are known to be finite.
#[derive(Clone)]
pub struct Packed {
    sources: Arc<Vec<Source>>,
    entry: Entry,
    rows: usize,
    columns: usize,
}

impl Packed {
    /// `entry` is a matrix of whole blocks in each row, and its format is one that can be read.
    pub(super) fn new(sources: Arc<Vec<Source>>, entry: Entry) -> Self {
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        Self { sources, entry, rows, columns }
    }

    /// Rows and columns.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Rows `start..start + count` as `[count, columns]`, f32, on the CPU.
    pub fn rows(&self, start: usize, count: usize) -> Result<Tensor> {
        let raw = self.raw(start, count)?;
        let values = convert::values::<f32>(raw, count * self.columns).map_err(changed)?;
        Ok(Tensor::from_vec(values, (count, self.columns), &Device::Cpu)?)
    }

    /// Decodes rows from `start` on into `out`, `[count, columns]`, on the thread that asks.
    pub fn fill(&self, start: usize, out: &mut [f32]) -> Result<()> {
        let raw = self.raw(start, out.len() / self.columns.max(1))?;
        Ok(convert::fill(raw, out).map_err(changed)?)
    }

    fn raw(&self, start: usize, count: usize) -> Result<Raw<'_>> {
        if start.checked_add(count).is_none_or(|end| end > self.rows) {
            let what = format!("rows {start} and {count} more of {}", self.rows);
            return Err(candle_core::Error::msg(what).bt().into());
        }
        let bytes = &self.sources[self.entry.source].bytes()[self.entry.start..self.entry.end];
        let row_bytes = bytes.len() / self.rows.max(1);
        let scale = match self.entry.scale.len() {
            0 | 1 => &self.entry.scale[..],
            _ => &self.entry.scale[start..start + count],
        };
        Ok(Raw {
            bytes: &bytes[start * row_bytes..(start + count) * row_bytes],
            encoding: self.entry.encoding,
            scale,
            row: self.columns,
        })
    }
}

fn changed(refusal: convert::Refusal) -> candle_core::Error {
    match refusal {
        convert::Refusal::Candle(error) => error,
        // All values were looked at when this was made.
        _ => candle_core::Error::msg("the file changed while it was in use").bt(),
    }
}

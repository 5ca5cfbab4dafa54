use candle_core::{DType, Device};

use super::*;
use crate::models::{registry, source::ModelSource};

const ALL: Free = Free { spatial: true, temporal: true, context: true };

fn limit(mib: u64) -> MemoryLimit {
    MemoryLimit(mib * MIB)
}

/// Fits the embedded model's clip of this size.
fn on_mini<T>(
    width: usize,
    height: usize,
    frames: usize,
    encodes: bool,
    test: impl FnOnce(&Holding<'_>) -> T,
) -> T {
    let checkpoint = registry::open(&ModelSource::Embedded).expect("the embedded model");
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let spec = VideoSpec { width, height, frames, fps: 8.0 };
    test(&Holding {
        checkpoint: checkpoint.as_ref(),
        at_once: spec,
        whole: spec,
        size: spec.size(),
        place: &place,
        encodes,
        decodes_only: false,
    })
}

#[test]
fn amounts_are_read_as_other_programs_read_them() {
    let bytes = |text: &str| text.parse::<MemoryLimit>().map(MemoryLimit::bytes).ok();
    for (text, expected) in [
        ("4GiB", 4 << 30),
        ("800MiB", 800 << 20),
        ("6G", 6 << 30),
        ("6g", 6 << 30),
        ("512k", 512 << 10),
        ("1T", 1 << 40),
        ("1.5 GiB", 3 << 29),
        ("2GB", 2_000_000_000),
        ("300mb", 300_000_000),
        ("123456789", 123_456_789),
        ("64B", 64),
    ] {
        assert_eq!(bytes(text), Some(expected), "{text}");
    }
    for text in [
        "",
        "G",
        "0",
        "0GiB",
        "-1G",
        "4GiBs",
        "4 4G",
        "4P",
        "1e3G4",
        "nanG",
        "infG",
        "99999999999999999999",
        "20000000T",
    ] {
        let refused = text.parse::<MemoryLimit>().map(|_| ()).expect_err(text).to_string();
        assert!(refused.contains("expected a size above 0"), "{text}: {refused}");
    }
    assert_eq!((limit(800).to_string(), MemoryLimit(7).to_string()), ("800 MiB".into(), "7 bytes".into()));
}

#[test]
fn the_least_limit_is_one() {
    for room in [1, MIB, 100 * MIB - 1, 100 * MIB, 12_345_678_901] {
        let least = MemoryLimit::least_mib(room);
        assert!(limit(least).room() >= room && limit(least - 1).room() < room + 2 * MIB, "{room}: {least}");
    }
}

#[test]
fn less_memory_never_gives_larger_tiles() {
    for (width, height, frames, encodes) in
        [(512, 512, 17, false), (1024, 1024, 17, true), (1280, 720, 17, false)]
    {
        on_mini(width, height, frames, encodes, |holding| {
            let whole = Tiling { context: 4, ..Tiling::default() };
            let mut before = holding.fit(limit(1 << 20), whole, ALL);
            assert_eq!(before.tiling, whole, "what fits is not cut");
            let mut cuts = 0;
            for mib in (100..4000).rev().step_by(10) {
                let fit = holding.fit(limit(mib), whole, ALL);
                let no_larger =
                    |cut: Option<(usize, usize)>, before: Option<(usize, usize)>| match (cut, before) {
                        (Some(cut), Some(before)) => cut <= before,
                        (cut, before) => cut.is_some() || before.is_none(),
                    };
                let (now, then) = (fit.tiling, before.tiling);
                assert!(no_larger(now.spatial, then.spatial) && no_larger(now.temporal, then.temporal));
                assert!(now.context <= then.context && fit.bytes <= before.bytes, "{fit:?} after {before:?}");
                assert_eq!(fit.bytes, holding.peak(&now).1);
                assert_eq!(fit.fits(), fit.bytes <= limit(mib).room());
                cuts += usize::from(now != then);
                if !fit.fits() {
                    // What is too much for this limit is what the least one is named for.
                    let excess = holding.excess(&fit).expect("too little");
                    let named = holding.fit(limit(excess.least_mib), whole, ALL);
                    assert!(named.fits() && holding.excess(&named).is_none(), "{excess:?}");
                    let less = holding.fit(limit(excess.least_mib - 2), whole, ALL);
                    assert!(!less.fits(), "{excess:?}");
                    break;
                }
                before = fit;
            }
            assert!(cuts > 2, "{cuts} cuts");
        });
    }
}

#[test]
fn what_the_user_has_chosen_stays() {
    on_mini(512, 512, 33, false, |holding| {
        let mut tiling = Tiling { spatial: Some((512, 448)), context: 3, ..Tiling::default() };
        let free = Free::beside(&tiling, Some(3));
        assert_eq!(free, Free { spatial: false, temporal: true, context: false });
        let least = holding.excess(&holding.fit(limit(1), tiling, free)).expect("too little").least_mib;
        let told = holding.keep_to(Some(limit(least)), free, [&mut tiling]).expect("enough");
        assert_eq!((tiling.spatial, tiling.context), (Some((512, 448)), 3));
        assert_eq!(told.is_some(), tiling.temporal.is_some(), "what is cut is told: {told:?}");
        assert!(told.is_none_or(|told| told.contains("runs of") && told.contains(&format!("{least} MiB"))));
        let fixed = tiling;
        let error = holding
            .keep_to(Some(limit(1)), Free::beside(&fixed, None), [&mut tiling])
            .expect_err("too little");
        assert_eq!(tiling, fixed);
        assert!(matches!(&error, Error::OverLimit { least_mib, .. } if *least_mib <= least), "{error}");
        assert!(error.hint().expect("a way out").contains("--max-memory"), "{:?}", error.hint());
        assert_eq!(holding.keep_to(None, ALL, [&mut tiling]).expect("no limit"), None);
    });
}

#[test]
fn a_larger_picture_in_the_file_counts() {
    on_mini(128, 128, 17, false, |holding| {
        let larger = Holding { size: Size { width: 1920, height: 1080 }, ..*holding };
        let tiling = Tiling::default();
        assert!(larger.peak(&tiling).1 > holding.peak(&tiling).1 + 50 * MIB);
        let reading = Holding { decodes_only: true, ..*holding };
        assert_eq!(reading.stages(&tiling).count(), 1);
    });
}

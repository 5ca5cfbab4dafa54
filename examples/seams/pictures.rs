//! Pictures that no model has seen.

use sora::{
    Result,
    media::{Fit, read_image},
    video::Frame,
};

/// Of several kinds, each with a name that is a prompt.
pub fn all(width: usize, height: usize) -> Result<Vec<(&'static str, Frame)>> {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/models/mini/sample.png");
    // A corner of what the built-in model once made, enlarged by that.
    let sample = read_image(sample.as_ref())?;
    let side = sample.width.min(sample.height) / 4;
    let rows = sample.rgb.chunks_exact(sample.width * 3).take(side);
    let corner =
        Frame { width: side, height: side, rgb: rows.flat_map(|row| &row[..side * 3]).copied().collect() };
    Ok(vec![
        ("a sailboat", boat(width, height, 3.0, 0.0)),
        ("a stone wall", painted(width, height, wall)),
        ("a forest", painted(width, height, forest)),
        ("a still life", painted(width, height, still_life)),
        ("a city", painted(width, height, city)),
        ("a sample", Fit::Crop.apply(&corner, width, height)?),
    ])
}

fn painted(width: usize, height: usize, colour: impl Fn(f64, f64) -> [f64; 3]) -> Frame {
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in 0..height {
        for column in 0..width {
            let (x, y) = (column as f64 / width as f64, row as f64 / height as f64);
            rgb.extend(colour(x, y).map(|v| v.clamp(0.0, 255.0) as u8));
        }
    }
    Frame { width, height, rgb }
}

/// Repeatable dice for a point of a grid, 0..1.
fn dice(x: i64, y: i64) -> f64 {
    let mut state = (x.wrapping_mul(0x9e37_79b9) ^ y.wrapping_mul(0x85eb_ca6b)) as u64;
    state = (state ^ state >> 15).wrapping_mul(0x2545_f491_4f6c_dd1d);
    ((state >> 40) & 0xffff) as f64 / 65_536.0
}

/// Smooth noise with `cells` hills across.
fn hills(x: f64, y: f64, cells: f64) -> f64 {
    let (x, y) = (x * cells, y * cells);
    let (left, top) = (x.floor(), y.floor());
    let ease = |t: f64| t * t * (3.0 - 2.0 * t);
    let (s, t) = (ease(x - left), ease(y - top));
    let at = |dx: i64, dy: i64| dice(left as i64 + dx, top as i64 + dy);
    let line = |dy: i64| at(0, dy) + s * (at(1, dy) - at(0, dy));
    line(0) + t * (line(1) - line(0))
}

/// Noise of many sizes, as stone, bark and clouds have it, 0..1.
fn texture(x: f64, y: f64, cells: f64) -> f64 {
    (0..5).map(|i| hills(x, y, cells * f64::from(1 << i)) / f64::from(2 << i)).sum()
}

/// Stones with mortar between them, lit from the left.
fn wall(x: f64, y: f64) -> [f64; 3] {
    let row = (y * 7.0).floor();
    let across = x * 5.0 + if row as i64 % 2 == 0 { 0.5 } else { 0.0 };
    let (u, v) = (across.fract(), (y * 7.0).fract());
    let tone = 90.0 + 60.0 * dice(across.floor() as i64, row as i64) + 70.0 * (texture(x, y, 9.0) - 0.5);
    let light = 1.15 - 0.5 * x;
    if u.min(1.0 - u) < 0.04 || v.min(1.0 - v) < 0.07 {
        let mortar = (150.0 + 50.0 * (texture(x, y, 24.0) - 0.5)) * light;
        return [mortar, mortar * 0.97, mortar * 0.92];
    }
    [tone * light, tone * 0.88 * light, tone * 0.74 * light]
}

/// Trunks before bright fog, leaves above and below.
fn forest(x: f64, y: f64) -> [f64; 3] {
    let fog = 215.0 - 60.0 * y;
    for i in 0..9 {
        let (place, wide) = (dice(i, 3), 0.012 + 0.03 * dice(i, 7));
        let bent = place + 0.03 * (hills(0.0, y, 3.0 + i as f64) - 0.5);
        if (x - bent).abs() < wide {
            let bark = 40.0 + 50.0 * texture(8.0 * x, y, 12.0) + 60.0 * (x - bent).max(0.0) / wide;
            return [bark * 1.05, bark * 0.9, bark * 0.75];
        }
    }
    let leaves = texture(x, y, 12.0);
    if leaves > 0.42 + 0.9 * (y - 0.1).clamp(0.0, 0.4) && y < 0.6 || y > 0.82 + 0.06 * hills(x, 0.0, 9.0) {
        let green = 60.0 + 130.0 * (leaves - 0.25);
        return [green * 0.6, green, green * 0.35];
    }
    [fog * 0.92, fog, fog * 0.9]
}

/// Fruit on a checked cloth.
fn still_life(x: f64, y: f64) -> [f64; 3] {
    for (cx, cy, radius, colour) in [
        (0.34, 0.52, 0.2, [214.0, 60.0, 38.0]),
        (0.64, 0.58, 0.17, [238.0, 150.0, 24.0]),
        (0.5, 0.34, 0.13, [120.0, 170.0, 40.0]),
    ] {
        let (u, v): (f64, f64) = ((x - cx) / radius, (y - cy) / radius);
        if u.hypot(v) < 1.0 {
            let depth = (1.0 - u * u - v * v).sqrt();
            let light = (0.35 + 0.75 * (0.55 * depth - 0.45 * u - 0.5 * v)).max(0.1);
            let shine = 190.0 * (-60.0 * ((u + 0.38).powi(2) + (v + 0.42).powi(2))).exp();
            let grain = 24.0 * (texture(x, y, 30.0) - 0.5);
            return colour.map(|c| c * light + shine + grain);
        }
    }
    if y < 0.62 {
        let dusk = 70.0 - 40.0 * y + 14.0 * (texture(x, y, 4.0) - 0.5);
        return [dusk, dusk * 0.8, dusk * 0.75];
    }
    let depth = 1.0 / (y - 0.35);
    let checked = ((x - 0.5) * depth * 5.0).floor() as i64 + (depth * 6.0).floor() as i64;
    if checked % 2 == 0 { [226.0, 220.0, 208.0] } else { [70.0, 92.0, 150.0] }
}

/// Houses with lit windows at night.
fn city(x: f64, y: f64) -> [f64; 3] {
    let house = (x * 8.0).floor() as i64;
    let top = 0.18 + 0.45 * dice(house, 1);
    if y < top {
        let star = if dice((x * 160.0) as i64, (y * 160.0) as i64) > 0.992 { 190.0 } else { 0.0 };
        return [18.0 + 60.0 * y + star, 22.0 + 50.0 * y + star, 60.0 + 70.0 * y + star];
    }
    let (u, v) = ((x * 40.0).fract(), (y * 32.0).fract());
    let lit = dice((x * 40.0) as i64, (y * 32.0) as i64) > 0.6;
    if (0.25..0.8).contains(&u) && (0.3..0.8).contains(&v) && lit {
        return [250.0, 214.0 + 30.0 * dice(house, 5), 130.0];
    }
    let grey = 34.0 + 22.0 * dice(house, 9) + 14.0 * (texture(x, y, 20.0) - 0.5);
    [grey, grey, grey * 1.2]
}

/// A boat on waves under a low sun. `time` moves the boat and the waves, `scene` the hour of the day.
pub fn boat(width: usize, height: usize, time: f64, scene: f64) -> Frame {
    painted(width, height, |x, y| boat_at(x, y, time, scene))
}

fn boat_at(x: f64, y: f64, time: f64, scene: f64) -> [f64; 3] {
    let boat = 0.25 + 0.012 * time;
    let swell = 0.6 + 0.02 * (9.0 * x + 0.35 * time).sin();
    let hull = (x - boat).abs() < 0.13 - 0.6 * (y - swell).abs() && (y - swell + 0.01).abs() < 0.05;
    let sail = x > boat - 0.01 && x < boat + 0.16 * (y - 0.22) / 0.33 && (0.22..0.55).contains(&y);
    if hull {
        return [120.0, 62.0, 40.0];
    }
    if sail {
        return [240.0, 232.0 - 30.0 * scene, 214.0 - 40.0 * scene];
    }
    if y > swell {
        let glint = 18.0 * (40.0 * (y - swell) + 14.0 * x - 0.6 * time).sin();
        return [30.0 + glint + 30.0 * scene, 84.0 + glint, 150.0 + glint - 25.0 * scene];
    }
    let sun = 190.0 * (-90.0 * ((x - 0.72).powi(2) + (y - 0.38).powi(2))).exp();
    [
        120.0 + 80.0 * y + sun + 20.0 * scene,
        130.0 + 40.0 * y + 0.7 * sun,
        205.0 - 90.0 * y + 0.3 * sun - 30.0 * scene,
    ]
}

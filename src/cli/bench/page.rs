//! `--report`: one page of HTML with everything in it; no script, nothing from the network.

use std::fmt::Write as _;

use transc::runtime::{Plan, Sizes};

use super::super::machine::Machine;
use super::super::report::clean;
use super::profile::{Profile, Row};
use super::{Line, Samples};

const WIDTH: f64 = 860.0;
const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}td,th{padding:2px 12px;text-align:right;\
border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}svg text{font:11px system-ui,sans-serif;fill:#333}\
p{color:#555}";

/// What the page shows.
pub struct Page<'a> {
    pub plan: &'a Plan,
    pub dims: &'a [String],
    pub lines: &'a [Line],
    pub samples: &'a Samples,
    pub profile: &'a Profile,
    pub sizes: &'a Sizes,
    pub machine: Option<&'a Machine>,
}

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let name = text(&self.plan.name);
        let fact = |k: &str| self.plan.facts.get(k).map_or("?", String::as_str);
        let mut h = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style>\n<h1>{name}</h1>\n\
             <p>{} &middot; target {}, backend {}, transc {}</p>\n",
            text(&self.dims.join(" ")),
            text(fact("target")),
            text(fact("backend")),
            text(&self.plan.producer)
        );
        h.push_str("<table><tr><th></th><th>p50 ms</th><th>p90 ms</th><th>p99 ms</th><th>min ms</th><th>spread</th></tr>\n");
        for l in self.lines {
            let s = &l.samples;
            let _ = writeln!(
                h,
                "<tr><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:.1} %</td></tr>",
                text(&l.title()),
                s.at(0.5),
                s.at(0.9),
                s.at(0.99),
                s.min(),
                s.spread() * 100.0
            );
        }
        h.push_str("</table>\n");
        self.latency(&mut h);
        self.ops(&mut h);
        self.roofline(&mut h);
        self.memory(&mut h);
        self.coverage(&mut h);
        h.push_str("</html>\n");
        h
    }

    fn latency(&self, h: &mut String) {
        const BINS: usize = 40;
        let s = self.samples;
        let (lo, hi) = (s.min(), s.at(1.0));
        let step = ((hi - lo) / BINS as f64).max(1e-9);
        let mut bins = [0usize; BINS];
        s.all().iter().for_each(|x| bins[(((x - lo) / step) as usize).min(BINS - 1)] += 1);
        let most = bins.iter().copied().max().unwrap_or(1).max(1) as f64;
        let _ = writeln!(h, "<h2>Latency</h2>\n<p>{} runs, {lo:.3} to {hi:.3} ms.</p>", s.all().len());
        svg(h, 150.0, |h| {
            let w = WIDTH / BINS as f64;
            for (i, n) in bins.iter().enumerate() {
                let height = *n as f64 / most * 120.0;
                rect(
                    h,
                    (i as f64 * w, 125.0 - height, w - 1.0, height),
                    "#4477aa",
                    &format!("{n} runs around {:.3} ms", lo + (i as f64 + 0.5) * step),
                );
            }
            for q in [0.5, 0.9, 0.99] {
                let x = ((s.at(q) - lo) / (step * BINS as f64) * WIDTH).min(WIDTH - 1.0);
                let _ = writeln!(h, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"128\" stroke=\"#aa3377\"/>");
                label(h, (x - 2.0).max(24.0), 142.0, "end", &format!("p{:.0}", q * 100.0));
            }
        });
    }

    fn ops(&self, h: &mut String) {
        const SHOWN: usize = 40;
        let mut rows: Vec<&Row> = self.profile.rows.iter().collect();
        rows.sort_by(|a, b| b.ns.total_cmp(&a.ns));
        let (total, most) = (self.profile.total_ns(), rows.first().map_or(1.0, |r| r.ns.max(1.0)));
        let shown = &rows[..rows.len().min(SHOWN)];
        let part = shown.iter().map(|r| r.ns).sum::<f64>() / total;
        let _ = writeln!(
            h,
            "<h2>Launches</h2>\n<p>The longest {} of {}, {:.0} % of the time; medians of single launches.</p>",
            shown.len(),
            rows.len(),
            part * 100.0
        );
        svg(h, shown.len() as f64 * 17.0 + 4.0, |h| {
            for (i, r) in shown.iter().enumerate() {
                let y = i as f64 * 17.0;
                let tip = format!("{}: {:.1} us, {:.1} GFLOP/s, {:.1} GB/s", r.kernel, r.ns / 1e3, r.gflops(), r.gbytes());
                rect(h, (0.0, y, (r.ns / most * 300.0).max(1.0), 14.0), colour(r), &tip);
                label(
                    h,
                    308.0,
                    y + 11.0,
                    "start",
                    &format!("{:.0} us  {:.1} %  {}", r.ns / 1e3, r.ns / total * 100.0, short(&r.node)),
                );
            }
        });
    }

    fn roofline(&self, h: &mut String) {
        h.push_str("<h2>Roofline</h2>\n");
        let Some((machine, memory)) = self.machine.and_then(|m| Some((m, m.stream()?))) else {
            h.push_str("<p>The peak of this machine was not measured.</p>\n");
            return;
        };
        let (x0, x1, y0, y1) = (-2.0, 4.0, -1.0, 4.0);
        let (height, px) = (330.0, |v: f64| (v.max(1e-9).log10() - x0) / (x1 - x0) * WIDTH);
        let py = |v: f64| (1.0 - (v.max(1e-9).log10() - y0) / (y1 - y0)) * height;
        let _ = writeln!(
            h,
            "<p>Each launch with products: operations per byte against GFLOP/s (both logarithmic), under the roofs that were measured here: {memory:.0} GB/s{}.</p>",
            machine.peaks().map(|(k, p)| format!(", {:.0} GFLOP/s in {}", p[1], k.name())).collect::<String>()
        );
        svg(h, height + 18.0, |h| {
            for (kind, [_, peak]) in machine.peaks() {
                let (ridge, end) = (peak / memory, 10f64.powf(x1));
                let _ = writeln!(
                    h,
                    "<polyline fill=\"none\" stroke=\"#999\" points=\"{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}\"/>",
                    px(10f64.powf(x0)),
                    py(10f64.powf(x0) * memory),
                    px(ridge),
                    py(peak),
                    px(end),
                    py(peak)
                );
                label(h, WIDTH - 2.0, py(peak) - 4.0, "end", kind.name());
            }
            for r in self.profile.rows.iter().filter(|r| r.work.macs > 0) {
                let intensity = 2.0 * r.work.macs as f64 / r.work.bytes.max(1) as f64;
                let _ = writeln!(
                    h,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{}\" fill-opacity=\"0.6\"><title>{}</title></circle>",
                    px(intensity),
                    py(r.gflops()),
                    colour(r),
                    text(&format!(
                        "{}: {intensity:.1} per byte, {:.1} GFLOP/s, {:.0} us",
                        short(&r.node),
                        r.gflops(),
                        r.ns / 1e3
                    ))
                );
            }
            for e in x0 as i32..=x1 as i32 {
                label(h, px(10f64.powi(e)), height + 14.0, "middle", &format!("1e{e}"));
            }
        });
    }

    fn memory(&self, h: &mut String) {
        let (launches, bytes) = (self.plan.launches.len().max(1) as f64, self.sizes.plan_bytes.max(1) as f64);
        let sum: usize = self.sizes.temps.iter().map(|t| t.len).sum();
        let weights: u64 = self.plan.consts.iter().map(|c| c.len_bytes).sum();
        let _ = writeln!(
            h,
            "<h2>Memory plan</h2>\n<p>Weights {:.1} MB. Between launches {:.1} MB, which {} buffers of {:.1} MB share; scratch {:.2} MB per thread. \
             Launches from left to right, addresses upwards.</p>",
            weights as f64 / 1e6,
            bytes / 1e6,
            self.sizes.temps.len(),
            sum as f64 / 1e6,
            self.sizes.scratch_bytes as f64 / 1e6
        );
        svg(h, 240.0, |h| {
            for (i, t) in self.sizes.temps.iter().enumerate() {
                let Some((first, last)) = t.life else { continue };
                let (x, w) = (first as f64 / launches * WIDTH, (last + 1 - first) as f64 / launches * WIDTH);
                let (y, height) = (t.offset as f64 / bytes * 240.0, t.len as f64 / bytes * 240.0);
                let tip = format!("buffer {i}: {} bytes at {}, launches {first} to {last}", t.len, t.offset);
                rect(h, (x, 240.0 - y - height, w, height.max(0.5)), ["#4477aa", "#66ccee", "#228833", "#ccbb44"][i % 4], &tip);
            }
        });
    }

    fn coverage(&self, h: &mut String) {
        let coverage = self.plan.facts.get("coverage").map_or("", String::as_str);
        h.push_str("<h2>Fusion coverage</h2>\n");
        if coverage.is_empty() {
            h.push_str("<p>Nothing that fuses was found in the model.</p>\n");
            return;
        }
        h.push_str("<table><tr><th>pattern</th><th>fused / found</th></tr>\n");
        for entry in coverage.split(", ") {
            let (name, count) = entry.rsplit_once(' ').unwrap_or((entry, ""));
            let _ = writeln!(h, "<tr><td>{}</td><td>{}</td></tr>", text(name), text(count));
        }
        h.push_str("</table>\n");
    }
}

/// By what the kernel is, as its name begins after the number.
fn colour(r: &Row) -> &'static str {
    let kind = r.kernel.split('_').nth(1).unwrap_or("");
    match kind {
        k if k.starts_with("matmul") || k.starts_with("conv") => "#4477aa",
        k if k.starts_with("spmm") => "#228833",
        k if k.starts_with("attention") => "#aa3377",
        _ => "#ccbb44",
    }
}

/// The end of a long name, which tells layers apart.
fn short(name: &str) -> String {
    let n = name.chars().count();
    if n <= 64 { name.into() } else { format!("..{}", name.chars().skip(n - 62).collect::<String>()) }
}

/// User text in HTML.
fn text(s: &str) -> String {
    clean(s).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn svg(h: &mut String, height: f64, draw: impl FnOnce(&mut String)) {
    let _ = writeln!(h, "<svg width=\"100%\" viewBox=\"0 0 {WIDTH} {height}\">");
    draw(h);
    h.push_str("</svg>\n");
}

fn rect(h: &mut String, (x, y, w, height): (f64, f64, f64, f64), fill: &str, tip: &str) {
    let _ = writeln!(
        h,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{height:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
        text(tip)
    );
}

fn label(h: &mut String, x: f64, y: f64, anchor: &str, what: &str) {
    let _ = writeln!(h, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", text(what));
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_users_are_text() {
        assert_eq!(super::text("a<script>&\"\u{202e}"), "a&lt;script&gt;&amp;&quot;\\u{202e}");
    }
}

"""The look that all pages share: the served page's colours, type, tables, figures; light, dark, narrow, printed."""

from __future__ import annotations

PALETTE = """
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --panel: #fff; --line: #dfe3e9; --text: #1b2028; --soft: #5a6473; --track: #e9ecf1;
  --accent: #2463eb; --on-accent: #fff; --fp32: #7b5cc4; --good: #17794a; --bad: #b42318; --wait: #96620a;
  --share-1: #94a3b8; --share-2: #2a9d8f; --share-3: #2463eb; --share-4: #e0912f; --tint: #eef3fe;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #111419; --panel: #191d24; --line: #2e3540; --text: #e7eaef; --soft: #9ba6b5; --track: #29303a;
    --accent: #7aa5ff; --on-accent: #0e1420; --fp32: #b79cf5; --good: #5fcb93; --bad: #ff8f84; --wait: #e6b35a;
    --share-1: #74839a; --share-2: #4fc0b1; --share-3: #7aa5ff; --share-4: #eaa951; --tint: #1d2738;
  }
}
"""
"""As the served page has it (``serve/page/style.css``): INT8 in ``--accent``, fp32 in ``--fp32``."""

STYLE = f"""{PALETTE}
*{{box-sizing:border-box}}
body{{font:.9375rem/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1.5rem 1rem 3rem;
background:var(--back);color:var(--text);overflow-wrap:anywhere}}
h1{{font-size:1.35rem;letter-spacing:-.01em;margin:.2rem 0 1rem}}
h2{{font-size:1.05rem;margin:2.2rem 0 .6rem}}
h3{{font-size:.9375rem;margin:1.4rem 0 .4rem}}
p{{margin:.5rem 0}}
a,summary{{color:var(--accent)}}
summary{{cursor:pointer;width:fit-content;margin:1rem 0 .4rem}}
code{{font-size:.85em;word-break:break-all}}
pre{{white-space:pre-wrap;font-size:.8em;background:var(--track);padding:.8rem;border-radius:.6rem}}
.small{{color:var(--soft);font-size:.875rem}}
.verdict{{display:flex;gap:.8rem;align-items:flex-start;padding:.8rem 1rem;border:1px solid var(--line);
border-left:4px solid var(--good);border-radius:.6rem;background:var(--panel);font-size:1.0625rem}}
.verdict svg{{flex:none;width:1.6rem;height:1.6rem;color:var(--good)}}
.verdict>div{{min-width:0}}.verdict ul{{margin:.3rem 0 0;padding-left:1.1rem;font-size:.9375rem}}
.verdict.bad{{border-left-color:var(--bad)}}.verdict.bad svg{{color:var(--bad)}}
.verdict.wait{{border-left-color:var(--wait)}}.verdict.wait svg{{color:var(--wait)}}
.quantities{{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.8rem;margin:1rem 0}}
.quantity{{padding:.8rem .9rem;border:1px solid var(--line);border-radius:.8rem;background:var(--panel)}}
.quantity h3{{margin:0 0 .5rem;font-size:.8125rem;font-weight:600;color:var(--soft)}}
.quantity p{{display:flex;justify-content:space-between;gap:.5rem;margin:.35rem 0 .1rem;font-size:.875rem}}
.quantity b{{font-variant-numeric:tabular-nums;white-space:nowrap}}
.track{{position:relative;height:.5rem;border-radius:.25rem;background:var(--track)}}
.track span{{display:block;height:100%;border-radius:.25rem;background:var(--accent)}}
.track span.fp32{{background:var(--fp32)}}
.track i{{position:absolute;top:-.15rem;bottom:-.15rem;border:solid var(--text);border-width:0 1.5px;opacity:.75;
background:linear-gradient(var(--text),var(--text)) center/100% 1px no-repeat}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}}
th{{color:var(--soft);font-weight:600;vertical-align:bottom}}
th,td{{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--line);overflow-wrap:normal}}
td{{white-space:nowrap}}td:first-child,td:last-child{{white-space:normal}}
th:first-child,td:first-child{{text-align:left;padding-left:0;overflow-wrap:anywhere;min-width:7rem}}
.words td,.words th{{text-align:left}}.words td{{overflow-wrap:anywhere;white-space:normal}}
.words td:first-child{{white-space:nowrap}}
.front td{{background:var(--tint)}}.failed td{{color:var(--bad)}}.chance td{{color:var(--soft)}}
.matrix{{width:auto}}.matrix td,.matrix th{{text-align:center;padding:.25rem .4rem;min-width:2.4rem}}
.matrix th{{font-weight:400;white-space:nowrap}}.matrix tr:first-child th{{writing-mode:vertical-rl;text-align:left;
transform:rotate(180deg);vertical-align:top;padding:.4rem .2rem}}
.matrix tr:first-child th:first-child{{writing-mode:horizontal-tb;transform:none}}
.bar{{display:inline-block;height:.7rem;border-radius:.2rem;background:var(--accent)}}.bar.minus{{background:var(--share-4)}}
.int8{{color:var(--accent)}}.fp32{{color:var(--fp32)}}
figure{{display:inline-block;margin:.3rem;padding:.5rem;text-align:center;font-size:.8em;border:1px solid var(--line);
border-radius:.6rem;background:var(--panel);max-width:100%;vertical-align:top}}
figure.flip{{width:8.2rem}}figure.looks{{width:auto}}.looks img{{margin:0 .15rem}}
figure svg{{max-width:100%;height:auto}}
figure img{{width:96px;image-rendering:pixelated;border-radius:.3rem}}
svg.chart{{display:block;width:100%;height:auto;max-width:60rem}}
svg text{{fill:var(--text)}}svg .soft{{fill:var(--soft)}}
.plot{{padding:.6rem;border:1px solid var(--line);border-radius:.8rem;background:var(--panel);overflow-x:auto}}
.plot svg{{min-width:34rem}}
@media (max-width:60rem){{.quantities{{grid-template-columns:repeat(2,minmax(0,1fr))}}}}
@media (max-width:26rem){{.quantities{{grid-template-columns:minmax(0,1fr)}}th,td{{padding:.3rem .4rem}}}}
@media print{{:root{{--back:#fff;--panel:#fff;--text:#000;--soft:#444;--line:#bbb;--track:#ddd;--accent:#2463eb;
--fp32:#7b5cc4;--good:#17794a;--bad:#b42318;--tint:#eef3fe}}body{{padding:0;max-width:none;font-size:10pt;print-color-adjust:exact;
-webkit-print-color-adjust:exact}}.verdict,.quantity,figure,svg,tr{{break-inside:avoid}}h2,h3{{break-after:avoid}}
.wide,.plot{{overflow:visible}}}}
"""
"""Style of every page that is a file: report, bench, sweep."""

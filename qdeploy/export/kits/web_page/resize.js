// The centre square of a picture, resized as Pillow does it: antialiased, in fixed-point numbers, first the rows and then
// the columns. A canvas's own resizing gives other pixels in every browser, and so other answers.

const BITS = 22; // of a weight behind its binary point: Pillow's 32 - 8 - 2
const HALF = 1 << (BITS - 1);
const STRIP_PIXELS = 2 ** 20; // read at once: a whole photo would take 4 bytes a pixel more, and some phones refuse it

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

/** Return the cubic of Pillow's bicubic filter, whose parameter is -0.5, at a distance of at most 2. */
function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Return for each output pixel the first input pixel, how many there are, and their weights, `taps` of them. */
function weightsOf(length, start, end, size, filter) {
  const scale = (end - start) / size;
  const stretch = Math.max(1, scale);
  const support = filter.support * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(size);
  const count = new Int32Array(size);
  const weights = new Int32Array(size * taps);
  for (let i = 0; i < size; i++) {
    const centre = start + (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    count[i] = Math.min(length, Math.trunc(centre + support + 0.5)) - first[i];
    const row = Array.from({ length: count[i] }, (_, k) => filter.weight((k + first[i] - centre + 0.5) / stretch));
    const sum = row.reduce((a, b) => a + b, 0);
    row.forEach((w, k) => {
      const scaled = (sum === 0 ? w : w / sum) * 2 ** BITS;
      weights[i * taps + k] = Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
  }
  return { first, count, weights, taps, begin: first[0], stop: first[size - 1] + count[size - 1] };
}

/** Resize each row of a strip of RGBA pixels to `size` RGB pixels. */
function resizeRows(pixels, width, rows, across, size, out, outRow) {
  const { first, count, weights, taps, begin } = across;
  for (let y = 0; y < rows; y++) {
    let to = (outRow + y) * size * 3;
    for (let i = 0; i < size; i++, to += 3) {
      let from = (y * width + first[i] - begin) * 4;
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      for (let k = i * taps; k < i * taps + count[i]; k++, from += 4) {
        const w = weights[k];
        red += pixels[from] * w;
        green += pixels[from + 1] * w;
        blue += pixels[from + 2] * w;
      }
      out[to] = red >> BITS; // a clamped array cuts at 0 and 255
      out[to + 1] = green >> BITS;
      out[to + 2] = blue >> BITS;
    }
  }
}

/** Resize columns: `size` rows of RGB pixels from those that `down` weighs. */
function resizeColumns(pixels, down, size) {
  const { first, count, weights, taps, begin } = down;
  const out = new Uint8ClampedArray(size * size * 3);
  const stride = size * 3;
  for (let i = 0; i < size; i++) {
    for (let x = 0; x < stride; x++) {
      let sum = HALF;
      let from = (first[i] - begin) * stride + x;
      for (let k = i * taps; k < i * taps + count[i]; k++, from += stride) sum += pixels[from] * weights[k];
      out[i * stride + x] = sum >> BITS;
    }
  }
  return out;
}

/** Return the matrix that turns a picture of this size upright, by its EXIF orientation. */
function upright(orientation, width, height) {
  switch (orientation) {
    case 2: return [-1, 0, 0, 1, width, 0];
    case 3: return [-1, 0, 0, -1, width, height];
    case 4: return [1, 0, 0, -1, 0, height];
    case 5: return [0, 1, 1, 0, 0, 0];
    case 6: return [0, 1, -1, 0, height, 0];
    case 7: return [0, -1, -1, 0, height, width];
    case 8: return [0, -1, 1, 0, 0, width];
    default: return [1, 0, 0, 1, 0, 0];
  }
}

/** Draw a picture upright and scaled, with what is left of and above a point outside. */
export function drawUpright(pen, { bitmap, orientation }, left, top, scale = 1) {
  const [a, b, c, d, e, f] = upright(orientation, bitmap.width, bitmap.height);
  pen.setTransform(scale * a, scale * b, scale * c, scale * d, scale * (e - left), scale * (f - top));
  pen.drawImage(bitmap, 0, 0);
  pen.resetTransform();
}

/**
 * Return the model's input, uint8 RGB, `size` x `size`.
 *
 * `picture` has a `bitmap`, its EXIF `orientation`, and `width` and `height` when it is upright; `rules` are a card's
 * `preprocessing`: transparent pixels show `background`.
 */
export function modelPixels(picture, rules) {
  const { width, height } = picture;
  const { size } = rules;
  const filter = FILTERS[rules.resize.split(",")[0]];
  if (!filter) throw new Error(`the card asks for an unknown resize, "${rules.resize}"`);
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  const across = weightsOf(width, left, left + side, size, filter);
  const down = weightsOf(height, top, top + side, size, filter);
  const columns = across.stop - across.begin;
  const lines = down.stop - down.begin;
  const deep = Math.min(lines, Math.max(1, Math.floor(STRIP_PIXELS / columns)));
  const pen = new OffscreenCanvas(columns, deep).getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = `rgb(${rules.background.join(",")})`;
  const narrow = new Uint8ClampedArray(lines * size * 3);
  for (let y = 0; y < lines; y += deep) {
    const rows = Math.min(deep, lines - y);
    pen.fillRect(0, 0, columns, deep);
    drawUpright(pen, picture, across.begin, down.begin + y);
    resizeRows(pen.getImageData(0, 0, columns, rows).data, columns, rows, across, size, narrow, y);
  }
  return resizeColumns(narrow, down, size);
}

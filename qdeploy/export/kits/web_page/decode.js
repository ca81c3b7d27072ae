// Files and frames to pictures: the formats and limits of qdeploy, decoded by the browser without changing a colour.

const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
const ORIENTATION = 0x0112; // EXIF tag

const mebibytes = (bytes) => Math.round(bytes / 2 ** 20);

/** Tell the format of a file by its first bytes, as qdeploy does; undefined for another one. */
function formatOf(bytes) {
  const start = String.fromCharCode(...bytes.subarray(0, 12));
  if (start.startsWith("\xff\xd8\xff")) return "JPEG";
  if (start.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (start.startsWith("RIFF") && start.endsWith("WEBP")) return "WebP";
  return start.startsWith("BM") ? "BMP" : undefined;
}

/** Decode a file within the kit's `limits`: a picture, or an Error that says what is wrong with it. */
export async function decodeFile(file, limits) {
  if (file.size > limits.bytes) {
    throw new Error(`has ${mebibytes(file.size)} MiB; the limit is ${mebibytes(limits.bytes)} MiB`);
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  const format = formatOf(bytes);
  if (!format) throw new Error("is not a JPEG, PNG, WebP or BMP image");
  const orientation = takeOrientation(bytes, format);
  const bitmap = await createImageBitmap(new Blob([bytes]), AS_STORED).catch(() => {
    throw new Error(`is a damaged or unusual ${format} image, which this browser cannot decode`);
  });
  const turned = orientation > 4;
  const [width, height] = turned ? [bitmap.height, bitmap.width] : [bitmap.width, bitmap.height];
  if (width * height > limits.pixels || Math.max(width, height) > limits.side) {
    bitmap.close();
    throw new Error(
      `has ${width} x ${height} pixels; the limits are ${limits.pixels / 1e6} megapixels and ${limits.side} a side`,
    );
  }
  return { bitmap, orientation, width, height };
}

/** Take the present frame of a video. */
export async function grabFrame(video) {
  const bitmap = await createImageBitmap(video, AS_STORED);
  return { bitmap, orientation: 1, width: bitmap.width, height: bitmap.height };
}

/**
 * Return a file's EXIF orientation, and write 1 in its place: of a WebP, browsers do not agree whether to turn it.
 *
 * Where there is none, or none that is understood, it is 1 and the browser's own rule stands.
 */
function takeOrientation(bytes, format) {
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = { JPEG: exifOfJpeg, PNG: exifOfPng, WebP: exifOfWebp, BMP: () => undefined }[format](view);
    const place = start === undefined ? undefined : orientationPlace(view, start);
    if (place === undefined) return 1;
    const found = view.getUint16(place.offset, place.little);
    if (found < 2 || found > 8) return 1;
    view.setUint16(place.offset, 1, place.little); // a PNG's checksum is wrong then, and the chunk ignored: as good
    return found;
  } catch (error) {
    if (error instanceof RangeError) return 1; // it ends before its own lengths say
    throw error;
  }
}

function textAt(view, offset, length) {
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + offset, length));
}

function exifOfJpeg(view) {
  for (let at = 2; view.getUint8(at) === 0xff; at += 2 + view.getUint16(at + 2)) {
    const marker = view.getUint8(at + 1);
    if (marker === 0xe1 && textAt(view, at + 4, 6) === "Exif\0\0") return at + 10;
    if (marker === 0xda) return undefined; // the pixels begin
  }
  return undefined;
}

function exifOfPng(view) {
  for (let at = 8; at + 8 < view.byteLength; at += 12 + view.getUint32(at)) {
    if (textAt(view, at + 4, 4) === "eXIf") return at + 8;
  }
  return undefined;
}

function exifOfWebp(view) {
  for (let at = 12; at + 8 < view.byteLength; ) {
    const length = view.getUint32(at + 4, true);
    if (textAt(view, at, 4) === "EXIF") return at + 8 + (textAt(view, at + 8, 6) === "Exif\0\0" ? 6 : 0);
    at += 8 + length + (length % 2);
  }
  return undefined;
}

/** Return where the first directory of EXIF data keeps the orientation. */
function orientationPlace(view, start) {
  const little = textAt(view, start, 2) === "II";
  const directory = start + view.getUint32(start + 4, little);
  for (let i = 0; i < view.getUint16(directory, little); i++) {
    const entry = directory + 2 + 12 * i;
    if (view.getUint16(entry, little) === ORIENTATION) return { offset: entry + 8, little };
  }
  return undefined;
}

// From a dropped file to a picture at model size, as sca_caption/images.py makes it, and a small one to show.

import { boxOf, draftFactor, fitted, reduced } from "./resize.js";

const MOST_PIXELS = 179e6; // as Pillow's own limit
const PREVIEW = 720; // pixels of its longer side

/** What is wrong with a file: a message for the user. */
export class PhotographError extends Error {}

/**
 * {pixels: Uint8Array (3, S, S), preview: Blob, width, height, region} of a file. Throws PhotographError.
 *
 * region: left, top, width and height of what the model sees, as shares of the whole.
 */
export async function opened(file, transform) {
  if (!file.size) throw new PhotographError("empty file (0 bytes); get the file again");
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  let picture;
  try {
    // Upright as EXIF says, and its levels as they are stored, without colour management: as Pillow reads it.
    picture = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new PhotographError(
      String.fromCharCode(...head.subarray(4, 8)) === "ftyp" || /tiff|heic|heif|svg/.test(file.type)
        ? "a kind of file this browser cannot open; convert it to JPEG"
        : "not an image, or damaged; get it again or convert it",
    );
  }
  try {
    const { width, height } = picture;
    if (width * height > MOST_PIXELS) {
      throw new PhotographError(`more than ${MOST_PIXELS / 1e6} million pixels; make it smaller first`);
    }
    const isJpeg = head[0] === 0xff && head[1] === 0xd8;
    const factor = isJpeg ? draftFactor(width, height, transform.size) : 1;
    const whole = { rows: rowsOf(picture), width, height };
    const { rows, ...small } = factor > 1 ? reduced(whole.rows, width, height, factor) : whole;
    const pixels = fitted(rows, small.width, small.height, transform);
    const [left, top, right, bottom] = boxOf(width, height, transform.mode);
    const region = [left / width, top / height, (right - left) / width, (bottom - top) / height];
    return { pixels, preview: await previewOf(picture), width, height, region };
  } finally {
    picture.close();
  }
}

/** rows(top, count): RGBA of some rows of a picture, on white where it is transparent. */
function rowsOf(picture) {
  const { width } = picture;
  let canvas;
  return (top, count) => {
    if (canvas?.height !== count) canvas = new OffscreenCanvas(width, count);
    const context = canvas.getContext("2d", { willReadFrequently: true }); // read here, so never kept in a graphics card
    context.fillStyle = "white";
    context.fillRect(0, 0, width, count);
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, top, width, count, 0, 0, width, count);
    return context.getImageData(0, 0, width, count).data;
  };
}

function previewOf(picture) {
  const scale = Math.min(1, PREVIEW / Math.max(picture.width, picture.height));
  const side = (length) => Math.max(1, Math.round(length * scale));
  const canvas = new OffscreenCanvas(side(picture.width), side(picture.height));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.86 });
}

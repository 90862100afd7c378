// Which similar pixels a pixel uses: one small image for every state of the network, over the image itself.
const DARK = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]; // from none to most
const STRONGEST = 0.85; // of the colour over the image, where it counts most

function colour(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (DARK.length - 1);
  const [low, high] = [DARK[Math.floor(at)], DARK[Math.floor(at) + 1]];
  return low.map((n, i) => n + (high[i] - n) * (at % 1));
}

function under(image, left, top, width, height) {
  // The pixels of the image there, in grey, so that colour is what counts.
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.filter = "grayscale(1)";
  context.drawImage(image, -left, -top);
  return context.getImageData(0, 0, width, height).data;
}

function drawn(state, centre, patch) {
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = [state.length, state[0].length];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const most = Math.max(...state.flat());
  state.flat().forEach((p, i) => {
    const share = STRONGEST * Math.sqrt(p / most), tint = colour(0.35 + (0.65 * p) / most);
    pixels.data.set([...tint.map((n, c) => share * n + (1 - share) * patch[4 * i + c]), 255], 4 * i);
  });
  pixels.data.set([0, 220, 255, 255], 4 * (centre[0] * canvas.width + centre[1]));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

export function showMaps(box, maps, x, y, image) {
  const words = document.createElement("p");
  words.textContent =
    `The pixels that pixel ${x}, ${y} (blue) uses, state by state, over the image; the brighter, the more. Noise: sigma ${maps.sigma}.`;
  const [height, width] = [maps.states[0].length, maps.states[0][0].length];
  const patch = under(image, x - maps.centre[1], y - maps.centre[0], width, height);
  const figures = maps.states.map((state, t) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const canvas = drawn(state, maps.centre, patch);
    caption.textContent = `${t + 1}: ${Math.round(maps.neighbours[t])} pixels`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `State ${t + 1}: about ${Math.round(maps.neighbours[t])} similar pixels`);
    figure.append(canvas, caption);
    return figure;
  });
  box.replaceChildren(words, ...figures);
}

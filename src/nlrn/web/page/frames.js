// Whether a file is an animation, by its blocks: the service takes single images.
const KINDS = [[/^GIF8/, gif], [/^\x89PNG/, png], [/^RIFF[^]{4}WEBP/, webp]];

export async function moves(file) {
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 12).arrayBuffer()));
  const [, found] = KINDS.find(([pattern]) => pattern.test(head)) || [];
  try {
    return Boolean(found) && found(new DataView(await file.arrayBuffer()));
  } catch {
    return false; // it ends too early: the service names what is damaged
  }
}

function gif(data) {
  const table = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0); // bytes of its colours
  let place = 13 + table(data.getUint8(10)), frames = 0;
  for (let kind; (kind = data.getUint8(place)) !== 0x3b; ) {
    if (kind === 0x2c && ++frames > 1) return true;
    if (kind === 0x2c) place += 11 + table(data.getUint8(place + 9));
    else if (kind === 0x21) place += 2;
    else return false;
    for (let bytes; (bytes = data.getUint8(place++)); ) place += bytes;
  }
  return false;
}

const name = (data, place) => String.fromCharCode(...[0, 1, 2, 3].map((i) => data.getUint8(place + i)));

function png(data) {
  let place = 8;
  for (; name(data, place + 4) !== "IDAT"; place += 12 + data.getUint32(place)) {
    if (name(data, place + 4) === "acTL") return data.getUint32(place + 8) > 1;
  }
  return false;
}

function webp(data) {
  let place = 12, frames = 0;
  for (; place + 8 <= data.byteLength; place += 8 + data.getUint32(place + 4, true) + (data.getUint32(place + 4, true) & 1)) {
    if (name(data, place) === "ANMF" && ++frames > 1) return true;
  }
  return false;
}

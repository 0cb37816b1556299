package canary

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"io"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// streams calls with each compressed stream that begins anywhere in data and gives more than a few bytes. Streams
// without a mark of their own, bare deflate and snappy blocks, are looked for at the very beginning alone; a snappy
// block elsewhere needs no opening, since it holds random text as it is.
func streams(data []byte, each func(kind string, inside []byte)) {
	try := func(kind string, r io.Reader) bool {
		inside, _ := io.ReadAll(io.LimitReader(r, MaxStream)) // what came before an error counts
		if len(inside) < MinLength {
			return false
		}
		each(kind, inside)
		return true
	}
	marks(data, []byte{0x1f, 0x8b, 8}, func(rest []byte) {
		if r, err := gzip.NewReader(bytes.NewReader(rest)); err == nil {
			r.Multistream(false) // the next has its own mark
			try("gzip", r)
		}
	})
	marks(data, []byte{0x28, 0xb5, 0x2f, 0xfd}, func(rest []byte) {
		if r, err := zstd.NewReader(bytes.NewReader(rest), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20)); err == nil {
			try("zstd", r)
			r.Close()
		}
	})
	for _, level := range []byte{0x01, 0x5e, 0x9c, 0xda} {
		marks(data, []byte{0x78, level}, func(rest []byte) { try("zlib", flate.NewReader(bytes.NewReader(rest[2:]))) })
	}
	marks(data, []byte("\xff\x06\x00\x00sNaPpY"), func(rest []byte) { try("snappy", s2.NewReader(bytes.NewReader(rest))) })
	marks(data, []byte("PK\x03\x04"), func(rest []byte) {
		if len(rest) > 30 {
			if body := 30 + int(rest[26]) + int(rest[27])<<8 + int(rest[28]) + int(rest[29])<<8; body < len(rest) {
				try("zip", flate.NewReader(bytes.NewReader(rest[body:])))
			}
		}
	})
	if n, err := s2.DecodedLen(data); err == nil && n > MinLength && n < MaxStream {
		if inside, err := s2.Decode(nil, data); err == nil {
			each("snappy", inside)
		}
	}
	if len(data) > 0 && data[0]&6 != 6 { // that kind of block does not exist
		try("deflate", flate.NewReader(bytes.NewReader(data)))
	}
}

func marks(data, mark []byte, at func(rest []byte)) {
	for {
		i := bytes.Index(data, mark)
		if i < 0 {
			return
		}
		at(data[i:])
		data = data[i+1:]
	}
}

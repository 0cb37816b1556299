package wire

import (
	"bytes"
	"fmt"
	"sort"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// HTTP2 takes one direction of an HTTP/2 connection apart: its headers as text, and the data of each stream in one
// piece, which frames would otherwise cut. nil: it is none.
func HTTP2(data []byte) [][]byte {
	preface := []byte(http2.ClientPreface)
	if bytes.HasPrefix(data, preface) {
		data = data[len(preface):]
	} else if len(data) < 9 || data[3] != byte(http2.FrameSettings) || data[5]|data[6]|data[7]|data[8] != 0 {
		return nil
	}
	var headers bytes.Buffer
	bodies := map[uint32][]byte{}
	decoder := hpack.NewDecoder(1<<20, func(f hpack.HeaderField) { fmt.Fprintf(&headers, "%s: %s\n", f.Name, f.Value) })
	decoder.SetAllowedMaxDynamicTableSize(1 << 20)
	framer := http2.NewFramer(nil, bytes.NewReader(data))
	framer.SetMaxReadFrameSize(1<<24 - 1)
	framer.AllowIllegalReads = true
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			break
		}
		switch f := frame.(type) {
		case *http2.HeadersFrame:
			decoder.Write(f.HeaderBlockFragment())
		case *http2.ContinuationFrame:
			decoder.Write(f.HeaderBlockFragment())
		case *http2.DataFrame:
			bodies[f.StreamID] = append(bodies[f.StreamID], f.Data()...)
		case *http2.GoAwayFrame:
			headers.Write(f.DebugData())
		}
	}
	pieces := [][]byte{headers.Bytes()}
	ids := make([]uint32, 0, len(bodies))
	for id := range bodies {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	for _, id := range ids {
		pieces = append(pieces, bodies[id])
	}
	return pieces
}

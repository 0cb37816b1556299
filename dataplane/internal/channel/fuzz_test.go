package channel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/net/http2"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// The frames that pass on a connection are seen as x/net's reader sees them, however they are cut; what is not whole is not seen.
func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("xyz"), EndHeaders: true, EndStream: true})
	fr.WriteData(1<<31-1, true, make([]byte, 300))
	fr.WriteRSTStream(3, http2.ErrCodeCancel)
	fr.WritePing(true, [8]byte{1})
	f.Add(b.Bytes(), uint16(0), true)
	f.Add(b.Bytes(), uint16(8), false)
	f.Add([]byte("\x00\x00\x00\x01\x05\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00"), uint16(2), false)
	f.Fuzz(func(t *testing.T, data []byte, size uint16, preface bool) {
		var want []string
		for at := 0; at+9 <= len(data); { // what x/net thinks of their insides is not asked
			h, err := http2.ReadFrameHeader(bytes.NewReader(data[at:]))
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprint(h.Type, h.Flags, h.StreamID))
			at += 9 + int(h.Length)
		}
		var got []string
		seen := &frames{seen: func(kind http2.FrameType, flags http2.Flags, id uint32) {
			got = append(got, fmt.Sprint(kind, flags, id))
		}}
		if preface {
			seen.rest = len(http2.ClientPreface)
			data = append([]byte(http2.ClientPreface), data...)
		}
		for len(data) > 0 {
			n := min(len(data), 1+int(size))
			seen.pass(data[:n])
			data = data[n:]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// What an upstream says of its health is read as protobuf's own code reads it, in one frame that is whole and not compressed.
func FuzzServing(f *testing.F) {
	framed := func(msg string) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	}
	for _, msg := range []string{"\x08\x01", "\x08\x02", "", "\x08\x01\x08\x02", "\x12\x02hi\x08\x01", "\x08\x01\x12\x05hi", "\x08\x81\x80\x80\x80\x10", "\x0a\x01\x01", "\x08", "\x0b\x08\x01\x0c\x08\x01"} {
		f.Add(framed(msg))
	}
	f.Add([]byte("\x01\x00\x00\x00\x02\x08\x01"))
	f.Add([]byte("\x00\x00\x00\x00\x03\x08\x01"))
	f.Add([]byte("\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, said []byte) {
		var want uint64
		if len(said) >= 5 && bytes.Equal(said, framed(string(said[5:]))) {
			var theirs healthpb.HealthCheckResponse
			if proto.Unmarshal(said[5:], &theirs) == nil {
				want = uint64(uint32(theirs.Status))
			}
		}
		if got := serving(said); got != want {
			t.Fatalf("%x: it says %d here, %d there", said, got, want)
		}
	})
}

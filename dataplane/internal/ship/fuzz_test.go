package ship

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
)

// What a control node says over QUIC, of any bytes and however it comes: each message is one that was written there, up to the
// first that is none, and none of a length that no answer has is waited for or made room for.
func FuzzReceive(f *testing.F) {
	frame := func(m *usagev1.UploadResponse) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
	}
	mark := frame(&usagev1.UploadResponse{Message: &usagev1.UploadResponse_Watermark{Watermark: &usagev1.Watermark{Epoch: 5, AppliedSeq: 7, Head: make([]byte, 32)}}})
	refusal := frame(&usagev1.UploadResponse{Message: &usagev1.UploadResponse_Refusal{Refusal: &usagev1.Refusal{Epoch: 5, Reason: ReasonGap, ExpectedSeq: 3}}})
	f.Add(append(bytes.Clone(mark), refusal...))
	f.Add(append(bytes.Clone(mark), mark[:9]...))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Add([]byte("\x81\x80\x04\x00"))
	f.Fuzz(func(t *testing.T, said []byte) {
		l := &quicLink[usagev1.UploadResponse, usagev1.UploadResponse, *usagev1.UploadResponse, *usagev1.UploadResponse]{in: bufio.NewReader(iotest.OneByteReader(bytes.NewReader(said)))}
		for rest := said; ; {
			n, size := binary.Uvarint(rest)
			want := new(usagev1.UploadResponse)
			whole := size > 0 && n <= maxAnswer && n <= uint64(len(rest)-size) && proto.Unmarshal(rest[size:size+int(n)], want) == nil
			got, err := l.Receive()
			if (err == nil) != whole {
				t.Fatalf("%x: got %v, %v, want one: %v", rest, got, err, whole)
			}
			if err != nil {
				return
			}
			if !proto.Equal(got, want) {
				t.Fatalf("%x: got %v, want %v", rest, got, want)
			}
			rest = rest[size+int(n):]
		}
	})
}

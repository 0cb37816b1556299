package trace

import (
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// What a receiver did not take is read as OpenTelemetry's own messages read it. Where those find text that is none, which nobody
// here looks at, the number counts nevertheless.
func FuzzRejected(f *testing.F) {
	for _, p := range []*collector.ExportTracePartialSuccess{nil, {}, {RejectedSpans: 3, ErrorMessage: "no"}, {RejectedSpans: -1}, {ErrorMessage: "only words"}} {
		b, err := proto.Marshal(&collector.ExportTraceServiceResponse{PartialSuccess: p})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, b...))
	}
	f.Add([]byte("\x0a\x05\x08\x01"))
	f.Add([]byte("\x0a\x02\x08\x01\x0a\x02\x08\x02"))
	f.Add([]byte("\x0a\x03\x12\x01\xff"))
	f.Add([]byte("\x0b\x0a\x02\x08\x01\x0c"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		got := rejected(answer)
		var theirs collector.ExportTraceServiceResponse
		if proto.Unmarshal(answer, &theirs) == nil && got != theirs.GetPartialSuccess().GetRejectedSpans() {
			t.Fatalf("%x: %d spans here, %v there", answer, got, &theirs)
		}
	})
}

package channel

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// HealthPath is asked by Check.
const HealthPath = "/grpc.health.v1.Health/Check"

// Check asks grpc.health.v1 at a base URL whether a service serves; "" is the server as a whole. The two messages are so small
// that they are written and read here: an edge links no gRPC.
func Check(ctx context.Context, rt http.RoundTripper, base, service string) error {
	ask := []byte{0, 0, 0, 0, 0}
	if service != "" {
		ask = append(binary.AppendUvarint(append(ask, 1<<3|2), uint64(len(service))), service...)
	}
	binary.BigEndian.PutUint32(ask[1:5], uint32(len(ask)-5))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+HealthPath, bytes.NewReader(ask))
	if err != nil {
		return err
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"bailiwick-probe/1"}}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	status := resp.Header.Get("Grpc-Status")
	if status == "" {
		status = resp.Trailer.Get("Grpc-Status")
	}
	if code, err := strconv.Atoi(status); resp.StatusCode != http.StatusOK || err != nil || code != 0 {
		return fmt.Errorf("health of service %q: HTTP status %d, gRPC status %q", service, resp.StatusCode, status)
	}
	if state := serving(said); state != 1 {
		return fmt.Errorf("health of service %q: it says %d, which is not SERVING", service, state)
	}
	return nil
}

// serving is field 1 of the answer's message, an enumeration; 0: none that reads. Where it is said twice the last counts, as
// protobuf has it: a server that says SERVING and then takes it back serves not.
func serving(said []byte) uint64 {
	if len(said) < 5 || said[0] != 0 || uint64(binary.BigEndian.Uint32(said[1:5])) != uint64(len(said)-5) {
		return 0
	}
	var state uint64
	for msg := said[5:]; len(msg) > 0; {
		field, kind, n := protowire.ConsumeTag(msg)
		if n < 0 || field > protowire.MaxValidNumber {
			return 0
		}
		msg = msg[n:]
		if n = protowire.ConsumeFieldValue(field, kind, msg); n < 0 {
			return 0
		}
		if field == 1 && kind == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(msg)
			state = uint64(uint32(v))
		}
		msg = msg[n:]
	}
	return state
}

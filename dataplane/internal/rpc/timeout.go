package rpc

import (
	"net/http"
	"strconv"
	"time"
)

// Timeout is how long the client gives the request; false: it does not say, or not in a way that reads.
func (k Kind) Timeout(h http.Header) (time.Duration, bool) {
	switch k {
	case GRPC, Web, WebText:
		return grpcTimeout(first(h, "Grpc-Timeout"))
	case ConnectUnary, ConnectStream:
		return connectTimeout(first(h, "Connect-Timeout-Ms"))
	}
	return 0, false
}

// SetTimeout tells the next hop how much is left.
func (k Kind) SetTimeout(h http.Header, d time.Duration) {
	ms := max(int64((d+time.Millisecond-1)/time.Millisecond), 1) // rounded up: whoever waits for the answer gives up first
	switch k {
	case GRPC, Web, WebText:
		unit := "m"
		if ms >= 1e8 {
			ms, unit = ms/1000, "S"
		}
		h["Grpc-Timeout"] = []string{strconv.FormatInt(min(ms, 99999999), 10) + unit}
	case ConnectUnary, ConnectStream:
		h["Connect-Timeout-Ms"] = []string{strconv.FormatInt(min(ms, 9999999999), 10)}
	}
}

const longest = 24 * 365 * time.Hour // what is longer is no deadline

func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	unit := units[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil || unit == 0 {
		return 0, false
	}
	if n > uint64(longest/unit) {
		return longest, true
	}
	return time.Duration(n) * unit, true
}

func connectTimeout(s string) (time.Duration, bool) {
	if s == "" || len(s) > 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, false
	}
	return min(time.Duration(n)*time.Millisecond, longest), true
}

package websocket

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"strings"
)

// Version is the one version of the protocol that there is.
const Version = "13"

// Names of the handshake's fields, in net/http's canonical form.
const (
	HeaderKey        = "Sec-Websocket-Key"
	HeaderVersion    = "Sec-Websocket-Version"
	HeaderAccept     = "Sec-Websocket-Accept"
	HeaderProtocol   = "Sec-Websocket-Protocol"
	HeaderExtensions = "Sec-Websocket-Extensions"
)

// maxProtocols bounds what a client offers to speak.
const maxProtocols = 32

// Why a handshake is refused. ErrVersion is told with the version that would be taken.
var (
	ErrVersion    = errors.New("only version 13 of WebSocket is spoken here")
	ErrKey        = errors.New("the handshake needs one Sec-WebSocket-Key: 16 bytes in base64")
	ErrConnection = errors.New("the handshake needs Upgrade: websocket and Connection: Upgrade, each once")
	ErrProtocols  = errors.New("Sec-WebSocket-Protocol holds what is no list of at most 32 tokens that differ")
	ErrAccept     = errors.New("the upstream's Sec-WebSocket-Accept does not answer the key it was sent")
	ErrChosen     = errors.New("the upstream chose a protocol or an extension that was not offered")
)

// Offer is a client's handshake, as far as it concerns anybody but the connection it came on.
type Offer struct {
	Key       string
	Protocols []string
}

// Asked says whether a request asks for a WebSocket and for nothing else.
func Asked(upgrade []string) bool {
	return len(upgrade) == 1 && strings.EqualFold(strings.TrimSpace(upgrade[0]), "websocket")
}

// ReadOffer reads a client's handshake, or says why it is none.
func ReadOffer(header map[string][]string) (o Offer, err error) {
	if !Asked(header["Upgrade"]) || !names(header["Connection"], "upgrade") {
		return o, ErrConnection
	}
	if v := header[HeaderVersion]; len(v) != 1 || v[0] != Version {
		return o, ErrVersion
	}
	key := header[HeaderKey]
	if len(key) != 1 {
		return o, ErrKey
	}
	var raw [18]byte
	if n, err := base64.StdEncoding.Strict().Decode(raw[:], []byte(cut(key[0]))); err != nil || n != 16 || len(key[0]) != 24 {
		return o, ErrKey
	}
	o.Key = key[0]
	o.Protocols, err = tokens(header[HeaderProtocol])
	return o, err
}

// cut keeps a hostile key from being decoded into more than there is room for.
func cut(s string) string { return s[:min(len(s), 24)] }

// ReadProtocols reads what is offered of a handshake that another edge has read before.
func ReadProtocols(header map[string][]string) ([]string, error) {
	return tokens(header[HeaderProtocol])
}

func tokens(values []string) (out []string, err error) {
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			item = strings.Trim(item, " \t")
			if !isToken(item) || len(out) == maxProtocols {
				return nil, ErrProtocols
			}
			for _, o := range out {
				if o == item {
					return nil, ErrProtocols
				}
			}
			out = append(out, item)
		}
	}
	return out, nil
}

func isToken(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?={}`, c) >= 0 {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// names says whether a list holds an option.
func names(values []string, option string) bool {
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(item, " \t"), option) {
				return true
			}
		}
	}
	return false
}

// NewKey is the key of a handshake of this edge's own: a client's is not passed on, so that an answer belongs to whom it was
// asked of.
func NewKey() string {
	var raw [16]byte
	rand.Read(raw[:]) // never fails
	return base64.StdEncoding.EncodeToString(raw[:])
}

// Accept is the answer to a key (RFC 6455 §4.2.2).
func Accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// Check judges what an upstream answered with 101 to a handshake that offered protocols under a key; it gives the protocol
// that was chosen, "" for none.
func Check(header map[string][]string, key string, offered []string) (protocol string, err error) {
	if !Asked(header["Upgrade"]) || !names(header["Connection"], "upgrade") {
		return "", ErrConnection
	}
	if a := header[HeaderAccept]; len(a) != 1 || strings.TrimSpace(a[0]) != Accept(key) {
		return "", ErrAccept
	}
	return Chosen(header, offered)
}

// Chosen is the protocol of an answer, which must be one of those offered.
func Chosen(header map[string][]string, offered []string) (protocol string, err error) {
	if len(header[HeaderExtensions]) > 0 {
		return "", ErrChosen
	}
	chosen := header[HeaderProtocol]
	if len(chosen) == 0 {
		return "", nil
	}
	for _, o := range offered {
		if len(chosen) == 1 && o == chosen[0] {
			return o, nil
		}
	}
	return "", ErrChosen
}

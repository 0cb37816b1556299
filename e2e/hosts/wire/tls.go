package wire

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

// Keys are the secrets of TLS sessions, by the client's random number and the secret's label.
type Keys map[string]map[string][]byte

// ReadKeys adds the secrets of a file in the form of NSS (SSLKEYLOGFILE). A file that is not there holds none.
func (k Keys) ReadKeys(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		part := strings.Fields(lines.Text())
		if len(part) != 3 {
			continue
		}
		random, err := hex.DecodeString(part[1])
		secret, err2 := hex.DecodeString(part[2])
		if err = errors.Join(err, err2); err != nil {
			return fmt.Errorf("read TLS secrets of %s: %w", path, err)
		}
		if k[string(random)] == nil {
			k[string(random)] = map[string][]byte{}
		}
		k[string(random)][part[0]] = secret
	}
	return lines.Err()
}

// Why a connection stays shut.
var (
	ErrNoTLS    = errors.New("it does not begin with a TLS handshake")
	ErrNoSecret = errors.New("its secrets were not written down")
	ErrOlder    = errors.New("it is no TLS 1.3, or of a cipher suite that is not read here")
)

// Plain is what one direction of a TLS connection carried.
type Plain struct {
	Data     []byte // the application's
	Messages []byte // TLS's own: certificates, session tickets, alerts
}

// Open reads what the two directions of a TLS 1.3 connection carry. The error says why there is nothing, or why it ends
// where it ends; what was read until then is returned.
func (k Keys) Open(client, server Stream) (said, heard Plain, err error) {
	hello, ok := handshake(client.Data, 1)
	if !ok || len(hello) < 34 {
		return said, heard, ErrNoTLS
	}
	answer, ok := handshake(server.Data, 2)
	if !ok || len(answer) < 38 {
		return said, heard, ErrNoTLS
	}
	secrets := k[string(hello[2:34])]
	if secrets == nil {
		return said, heard, ErrNoSecret
	}
	if secrets["CLIENT_TRAFFIC_SECRET_0"] == nil {
		return said, heard, ErrOlder
	}
	id := int(answer[34])
	if len(answer) < 37+id {
		return said, heard, ErrNoTLS
	}
	s, ok := suites[binary.BigEndian.Uint16(answer[35+id:])]
	if !ok {
		return said, heard, ErrOlder
	}
	said, err = s.read(client.Data, secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"], secrets["CLIENT_TRAFFIC_SECRET_0"])
	heard, err2 := s.read(server.Data, secrets["SERVER_HANDSHAKE_TRAFFIC_SECRET"], secrets["SERVER_TRAFFIC_SECRET_0"])
	return said, heard, errors.Join(err, err2)
}

// handshake is the body of the first message, if it is of that type and in one record.
func handshake(data []byte, kind byte) ([]byte, bool) {
	if len(data) < 9 || data[0] != 22 || data[5] != kind {
		return nil, false
	}
	n := int(data[6])<<16 | int(data[7])<<8 | int(data[8])
	return data[9:min(len(data), 9+n)], true
}

type suite struct {
	hash func() hash.Hash
	key  int
	aead func(key []byte) (cipher.AEAD, error)
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

var suites = map[uint16]suite{
	0x1301: {sha256.New, 16, gcm},
	0x1302: {sha512.New384, 32, gcm},
	0x1303: {sha256.New, 32, chacha20poly1305.New},
}

func (s suite) expand(secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(append(info, "tls13 "+label...), 0)
	out, err := hkdf.Expand(s.hash, secret, string(info), n)
	if err != nil {
		panic(err) // the lengths are constants
	}
	return out
}

type opener struct {
	aead     cipher.AEAD
	iv       []byte
	sequence uint64
}

func (s suite) opener(secret []byte) (*opener, error) {
	aead, err := s.aead(s.expand(secret, "key", s.key))
	return &opener{aead: aead, iv: s.expand(secret, "iv", 12)}, err
}

func (o *opener) open(header, body []byte) ([]byte, error) {
	nonce := append([]byte(nil), o.iv...)
	for i := range 8 {
		nonce[4+i] ^= byte(o.sequence >> (56 - 8*i))
	}
	plain, err := o.aead.Open(nil, nonce, body, header)
	if err == nil {
		o.sequence++
	}
	return plain, err
}

// read opens record after record: under the handshake's secret, then that of the data, then each that follows from it.
func (s suite) read(data, first, then []byte) (plain Plain, err error) {
	now, err := s.opener(first)
	if err != nil {
		return plain, err
	}
	next := then
	for len(data) >= 5 {
		n := int(binary.BigEndian.Uint16(data[3:]))
		if len(data) < 5+n {
			return plain, nil // the connection was cut in the middle of a record
		}
		header, body := data[:5], data[5:5+n]
		data = data[5+n:]
		if header[0] != 23 { // in the clear, as the raw stream shows it
			continue
		}
		inside, err := now.open(header, body)
		if err != nil {
			later, err2 := s.opener(next)
			if err2 != nil {
				return plain, err2
			}
			if inside, err = later.open(header, body); err != nil {
				return plain, fmt.Errorf("open a record: %w", err)
			}
			now, next = later, s.expand(next, "traffic upd", s.hash().Size())
		}
		for len(inside) > 0 && inside[len(inside)-1] == 0 {
			inside = inside[:len(inside)-1]
		}
		switch last := len(inside) - 1; {
		case last < 0:
		case inside[last] == 23: // the type comes last
			plain.Data = append(plain.Data, inside[:last]...)
		default:
			plain.Messages = append(plain.Messages, inside[:last]...)
		}
	}
	return plain, nil
}

package table

import (
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
)

// Keys are nearly all of a large table, so their one encoding has a writer and a reader of its own beside encoding/json's,
// which would take seconds for a million. Both give and take exactly what Encode gives; whatever else is left to Decode.

// keyWire is how a key travels. One with what edges of level 0 do not know says to them that it is suspended; whether it is,
// Held says to all others.
type keyWire struct {
	ID           string `json:"id"`
	DigestHex    string `json:"digest"`
	Customer     string `json:"customer"`
	Subscription string `json:"subscription"`
	Plan         string `json:"plan"`
	Suspended    bool   `json:"suspended,omitempty"`
	Overdue      bool   `json:"overdue,omitempty"`
	Ends         int64  `json:"ends,omitempty"`
	Scopes       string `json:"scopes,omitempty"`
	From         string `json:"from,omitempty"`
	Needs        Level  `json:"needs,omitempty"`
	Held         bool   `json:"held,omitempty"`
}

// derived is the level that a key needs by what it holds.
func (k *Key) derived() Level {
	if k.Scopes != "" || k.From != "" {
		return 1
	}
	return 0
}

// MarshalJSON implements json.Marshaler.
func (k Key) MarshalJSON() ([]byte, error) {
	w := keyWire{k.ID, k.DigestHex, k.Customer, k.Subscription, k.Plan, k.Suspended, k.Overdue, k.Ends, k.Scopes, k.From, max(k.Needs, k.derived()), false}
	if w.Needs > 0 {
		w.Suspended, w.Held = true, k.Suspended
	}
	return json.Marshal(w)
}

// UnmarshalJSON implements json.Unmarshaler.
func (k *Key) UnmarshalJSON(data []byte) error {
	var w keyWire
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	if w.Needs > 0 {
		w.Suspended = w.Held
	}
	*k = Key{ID: w.ID, DigestHex: w.DigestHex, Customer: w.Customer, Subscription: w.Subscription, Plan: w.Plan, Suspended: w.Suspended, Overdue: w.Overdue,
		Ends: w.Ends, Scopes: w.Scopes, From: w.From}
	if w.Needs > k.derived() {
		k.Needs = w.Needs
	}
	return nil
}

// AppendKey appends the canonical encoding of a key, of its Digest and not of DigestHex.
func AppendKey(b []byte, k *Key) []byte {
	if k.Needs != 0 || !plain(k.ID) || !plain(k.Customer) || !plain(k.Subscription) || !plain(k.Plan) || !plain(k.Scopes) || !plain(k.From) {
		c := *k
		c.DigestHex = hex.EncodeToString(k.Digest[:])
		o, err := Encode(KindKey, k.ID, &c)
		if err != nil {
			panic(err) // strings and booleans always encode
		}
		return append(b, o.Data...)
	}
	b = append(append(b, `{"id":"`...), k.ID...)
	b = hex.AppendEncode(append(b, `","digest":"`...), k.Digest[:])
	b = append(append(b, `","customer":"`...), k.Customer...)
	b = append(append(b, `","subscription":"`...), k.Subscription...)
	b = append(append(b, `","plan":"`...), k.Plan...)
	b = append(b, '"')
	bound := k.derived() > 0
	if k.Suspended || bound {
		b = append(b, `,"suspended":true`...)
	}
	if k.Overdue {
		b = append(b, `,"overdue":true`...)
	}
	if k.Ends != 0 {
		b = strconv.AppendInt(append(b, `,"ends":`...), k.Ends, 10)
	}
	if k.Scopes != "" {
		b = append(append(append(b, `,"scopes":"`...), k.Scopes...), '"')
	}
	if k.From != "" {
		b = append(append(append(b, `,"from":"`...), k.From...), '"')
	}
	if bound {
		b = append(b, `,"needs":1`...)
	}
	if bound && k.Suspended {
		b = append(b, `,"held":true`...)
	}
	return append(b, '}')
}

// ReadKey reads a canonical encoding; false if it is any other, which need not be a bad one. The texts of k share data's
// memory through text, which must be string(data) or alias it; DigestHex is left empty.
func ReadKey(text string, k *Key) bool {
	*k = Key{}
	rest, ok := text, true
	field := func(before string) (v string) {
		if !ok || !strings.HasPrefix(rest, before) {
			ok = false
			return ""
		}
		rest = rest[len(before):]
		end := strings.IndexByte(rest, '"')
		if end < 0 {
			ok = false
			return ""
		}
		v, rest = rest[:end], rest[end:]
		ok = plain(v)
		return v
	}
	k.ID = field(`{"id":"`)
	digest := field(`","digest":"`)
	k.Customer = field(`","customer":"`)
	k.Subscription = field(`","subscription":"`)
	k.Plan = field(`","plan":"`)
	if !ok || len(digest) != hex.EncodedLen(len(k.Digest)) {
		return false
	}
	for i := range k.Digest {
		hi, lo := nibble[digest[2*i]], nibble[digest[2*i+1]]
		if hi|lo > 15 {
			return false
		}
		k.Digest[i] = hi<<4 | lo
	}
	rest, _ = strings.CutPrefix(rest, `"`)
	rest, k.Suspended = strings.CutPrefix(rest, `,"suspended":true`)
	rest, k.Overdue = strings.CutPrefix(rest, `,"overdue":true`)
	if number, ok := strings.CutPrefix(rest, `,"ends":`); ok {
		digits := number[:len(number)-len(strings.TrimLeft(number, "-0123456789"))]
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n == 0 || strconv.FormatInt(n, 10) != digits { // 0 is not written, and no number in two ways
			return false
		}
		k.Ends, rest = n, number[len(digits):]
	}
	optional := func(before string) (v string) { // an empty one is not written
		if strings.HasPrefix(rest, before) {
			if v = field(before); v == "" || !strings.HasPrefix(rest, `"`) {
				ok = false
				return ""
			}
			rest = rest[1:]
		}
		return v
	}
	k.Scopes = optional(`,"scopes":"`)
	k.From = optional(`,"from":"`)
	if k.derived() > 0 {
		var needs bool
		if rest, needs = strings.CutPrefix(rest, `,"needs":1`); !needs || !k.Suspended {
			return false
		}
		rest, k.Suspended = strings.CutPrefix(rest, `,"held":true`)
	}
	return ok && rest == "}"
}

// plain says whether encoding/json writes s as it is.
func plain(s string) bool {
	for i := range len(s) {
		if !literal[s[i]] {
			return false
		}
	}
	return true
}

var (
	literal [256]bool
	nibble  [256]uint8 // of lower case, as canonical text has it; 255: none
)

func init() {
	for c := byte(' '); c < 0x7f; c++ {
		literal[c] = !strings.ContainsRune(`"\<>&`, rune(c))
	}
	for i := range nibble {
		nibble[i] = 255
	}
	for i, c := range []byte("0123456789abcdef") {
		nibble[c] = uint8(i)
	}
}

package backup

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"bailiwick/shared/fault"
)

// A newer format may hold anything: it is refused by its number before its other fields are looked at.
func TestReadInfo_NewerNamesItsProgram(t *testing.T) {
	text := []byte(`{"version":2,"program":"bailiwick-control v9","anything":1}`)
	f := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(text)))
	f = append(f, text...)
	f = binary.BigEndian.AppendUint32(f, crc32.Checksum(text, castagnoli))
	_, err := ReadInfo(bytes.NewReader(f))
	if fault.ReasonOf(err) != ReasonNewer || !strings.Contains(err.Error(), "bailiwick-control v9") {
		t.Errorf("newer: got %v, want it refused with the program's name", err)
	}
}

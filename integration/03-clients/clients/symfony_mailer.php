<?php
// Symfony Mailer, which is what Laravel sends with. Arguments: mode, job file.
require '/usr/share/php/Symfony/Component/Mailer/autoload.php';

use Symfony\Component\Mailer\Transport;
use Symfony\Component\Mime\Email;
use Symfony\Component\Mime\Part\TextPart;

[$mode, $job] = [$argv[1], json_decode(file_get_contents($argv[2]), true)];

// What stands in .env, where the variable is put in as here.
$password = rawurlencode(getenv('MAIL_PASSWORD'));
$env = [
    'plain' => <<<ENV
    MAILER_DSN="smtp://127.0.0.1:2525?auto_tls=false"
    ENV,
    'starttls' => <<<ENV
    MAILER_DSN="smtp://app:$password@relay.example.com:587?require_tls=true"
    ENV,
    'implicit' => <<<ENV
    MAILER_DSN="smtps://app:$password@relay.example.com:465"
    ENV,
][$mode];
$dsn = parse_ini_string($env, false, INI_SCANNER_RAW)['MAILER_DSN'];

class EightBit extends Email
{
    public function getBody(): Symfony\Component\Mime\Part\AbstractPart
    {
        // As 8bit it hands on line ends as they are, and a lone LF is refused.
        return new TextPart(str_replace("\n", "\r\n", $this->getTextBody()), 'utf-8', 'plain', '8bit');
    }
}

$transport = Transport::fromDsn($dsn);
foreach ($job['mails'] as $mail) {
    $kept = "{$job['folder']}/{$mail['kind']}";
    try {
        $email = $mail['kind'] === '8bit' ? new EightBit() : new Email();
        $email->from($mail['from'])->to(...$mail['to'])->cc(...$mail['cc'])->bcc(...$mail['bcc'])
            ->subject($mail['subject'])->text($mail['text']);
        if ($mail['attachment']) $email->attachFromPath($mail['attachment'], 'report.bin', 'application/octet-stream');
        $sent = $transport->send($email);
        file_put_contents("$kept.eml", $sent->toString() . "\r\n"); // the transport ends with an empty line
    } catch (Throwable $error) {
        file_put_contents("$kept.error", get_class($error) . ': ' . $error->getMessage());
    }
}

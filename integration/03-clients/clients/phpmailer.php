<?php
// PHPMailer, which is what WordPress sends with. Arguments: mode, job file.
require '/usr/share/php/libphp-phpmailer/autoload.php';

use PHPMailer\PHPMailer\PHPMailer;

[$mode, $job] = [$argv[1], json_decode(file_get_contents($argv[2]), true)];

// As WordPress calls it.
function add_action(string $hook, callable $do): void
{
    $GLOBALS[$hook] = $do;
}

if ($mode === 'plain') {
    add_action('phpmailer_init', function ($phpmailer) {
        $phpmailer->isSMTP();
        $phpmailer->Host = '127.0.0.1';
        $phpmailer->Port = 2525;
        $phpmailer->SMTPAuth = false;
        $phpmailer->SMTPSecure = '';
        $phpmailer->SMTPAutoTLS = false;
    });
} elseif ($mode === 'starttls') {
    add_action('phpmailer_init', function ($phpmailer) {
        $phpmailer->isSMTP();
        $phpmailer->Host = 'relay.example.com';
        $phpmailer->Port = 587;
        $phpmailer->SMTPAuth = true;
        $phpmailer->Username = 'app';
        $phpmailer->Password = getenv('MAIL_PASSWORD');
        $phpmailer->SMTPSecure = 'tls';
        $phpmailer->SMTPOptions = ['ssl' => ['cafile' => '/etc/ssl/mailramp-ca.pem']];
    });
} else {
    add_action('phpmailer_init', function ($phpmailer) {
        $phpmailer->isSMTP();
        $phpmailer->Host = 'relay.example.com';
        $phpmailer->Port = 465;
        $phpmailer->SMTPAuth = true;
        $phpmailer->Username = 'app';
        $phpmailer->Password = getenv('MAIL_PASSWORD');
        $phpmailer->SMTPSecure = 'ssl';
        $phpmailer->SMTPOptions = ['ssl' => ['cafile' => '/etc/ssl/mailramp-ca.pem']];
    });
}

foreach ($job['mails'] as $mail) {
    $kept = "{$job['folder']}/{$mail['kind']}";
    try {
        $phpmailer = new PHPMailer(true);
        $GLOBALS['phpmailer_init']($phpmailer);
        $phpmailer->Timeout = 30;
        $phpmailer->CharSet = 'utf-8';
        $phpmailer->Encoding = $mail['kind'] === '8bit' ? '8bit' : 'quoted-printable';
        $phpmailer->setFrom($mail['from']);
        foreach ($mail['to'] as $address) $phpmailer->addAddress($address);
        foreach ($mail['cc'] as $address) $phpmailer->addCC($address);
        foreach ($mail['bcc'] as $address) $phpmailer->addBCC($address);
        $phpmailer->Subject = $mail['subject'];
        $phpmailer->Body = $mail['text'];
        if ($mail['dsn']) $phpmailer->dsn = 'FAILURE,DELAY';
        if ($mail['attachment']) $phpmailer->addAttachment($mail['attachment'], 'report.bin');
        $phpmailer->preSend();
        $octets = $phpmailer->getSentMIMEMessage();
        $phpmailer->postSend();
        file_put_contents("$kept.eml", $octets . "\r\n"); // it ends what it sends with an empty line
    } catch (Throwable $error) {
        file_put_contents("$kept.error", get_class($error) . ': ' . $error->getMessage());
    }
}
